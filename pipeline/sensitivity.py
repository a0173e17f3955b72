"""`slipway sensitivity`: what each layer's precision costs, and the best precisions under a budget."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_repo.runtime.contract import LOGITS
from model_repo.runtime.errors import BadInput

if TYPE_CHECKING:
    from calibration.allocation import Allocation, Frontier, Option
    from calibration.pareto_picture import Point
    from calibration.schemes import Scheme
    from pipeline.steps.context import BuildContext

PRECISIONS = ("fp32", "int8-weights", "int4")
"""Precisions of weights alone: what one layer costs is then told by its weight."""

LOGIT_BYTES = 128 << 20
"""Logits of the float model that are kept; fewer positions are scored where they would take more."""


@dataclass(frozen=True)
class Budget:
    """One of them is given. `share`: of the layers' bytes in float32."""

    num_bytes: int | None = None
    share: float | None = None
    loss: float | None = None

    def __post_init__(self) -> None:
        given = [self.num_bytes, self.share, self.loss]
        if sum(value is not None for value in given) != 1:
            raise BadInput("give one budget: --budget-bytes, --budget-share or --max-loss")
        if any(value is not None and not value > 0 for value in given):
            raise BadInput("the budget must be above zero")


@dataclass(frozen=True)
class Findings:
    """What was measured and chosen. Losses: see `calibration.sensitivity`."""

    options: dict[str, list[Option]]
    frontier: Frontier
    chosen: Allocation
    measured: float  # loss of the whole model with the chosen precisions
    uniform: dict[str, tuple[int, float]]  # precision to bytes and measured loss
    tokens: int
    unrefined: float | None = (
        None  # measured loss of what the sums alone chose; None where nothing was refined
    )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "tokens": self.tokens,
            "layers": {
                name: [option._asdict() for option in options] for name, options in self.options.items()
            },
            "frontier": [
                [int(size), float(loss)]
                for size, loss in zip(self.frontier.num_bytes, self.frontier.losses, strict=True)
            ],
            "chosen": {
                **self.chosen._asdict(),
                "measured_loss": self.measured,
                "unrefined_loss": self.unrefined,
            },
            "uniform": {name: {"bytes": size, "loss": loss} for name, (size, loss) in self.uniform.items()},
        }

    def points(self) -> list[Point]:
        """What a picture of the frontier shows beside it."""
        from calibration.pareto_picture import Point

        uniform = [Point("uniform", name, size, loss) for name, (size, loss) in self.uniform.items()]
        return [*uniform, Point("chosen", "chosen", self.chosen.num_bytes, self.measured)]


def find(
    context: BuildContext,
    budget: Budget,
    *,
    precisions: tuple[str, ...] = PRECISIONS,
    block: int = 32,
    data: Path | None = None,
    tokens: int = 4096,
    measurements: int | None = None,
    advanced: Callable[[int, int], None] = lambda done, total: None,
) -> Findings:
    """Measures each layer of a build's fused graph by itself, and chooses.

    `data`: held-out text of a decoder (default: the project's own). `measurements`: of whole allocations, by which a
    choice under a budget of bytes is refined (default: two for each precision of each layer; 0: none). Raises
    BadInput: another kind of model without examples, an unknown precision, a budget that cannot be kept.
    """
    from calibration.allocation import Frontier
    from calibration.batches import Batches
    from calibration.refining import refine
    from calibration.sensitivity import Swapping, loss_of, sensitivities, weight_bytes
    from pipeline.workspace import FUSED

    schemes = _schemes(context.recipe.target.name, precisions, block)
    samples = _samples(context, data, tokens)
    facts = context.facts
    count = sum(len(sample) for sample in samples) if facts.kind == "decoder" else len(samples)
    stride = max(1, -(-count * facts.vocab_size * 4 // LOGIT_BYTES)) if facts.kind == "decoder" else 1
    context.required("fuse")
    swapping = Swapping(context.workspace.path(FUSED), Batches(facts, samples, logit_stride=stride))
    options = sensitivities(swapping, schemes, advanced=advanced)
    frontier = Frontier(options)
    if measurements is None:
        measurements = 2 * len(schemes) * len(options)
    measured, unrefined = None, None
    if budget.loss is not None:
        chosen = frontier.within_loss(budget.loss)
    else:
        whole = sum(weight_bytes(layer.read().shape, None) for layer in swapping.layers.values())
        most = budget.num_bytes or (budget.share or 0) * whole
        chosen = frontier.within_bytes(most)
        if measurements:
            chosen, measured, unrefined, _ = refine(
                options,
                chosen,
                most,
                lambda precisions: loss_of(swapping, precisions, schemes),
                measurements=measurements,
                advanced=advanced,
            )
    uniform = {}
    for precision in schemes:
        size = sum(
            option.num_bytes
            for found in options.values()
            for option in found
            if option.precision == precision
        )
        uniform[precision] = (size, loss_of(swapping, dict.fromkeys(options, precision), schemes))
    if measured is None:
        measured = loss_of(swapping, chosen.precisions, schemes)
    return Findings(options, frontier, chosen, measured, uniform, count, unrefined)


def write_layers(findings: Findings, path: Path) -> None:
    """The file that `quantize.layers` names: weight to precision. Raises OSError when the disk refuses."""
    path.write_text(json.dumps(findings.chosen.precisions, indent=2) + "\n", encoding="utf-8")


def _schemes(target: str, precisions: tuple[str, ...], block: int) -> dict[str, Scheme | None]:
    from pipeline.quantize.policy import policy_of
    from pipeline.quantize.precisions import layer_schemes

    for precision in precisions:
        if precision not in PRECISIONS:
            raise BadInput(
                f"precision {precision!r} is not measured layer by layer; those are {', '.join(PRECISIONS)}"
            )
    if len(set(precisions)) < 2:
        raise BadInput(f"one precision leaves nothing to choose; give two or more of {', '.join(PRECISIONS)}")
    policy = policy_of(target, "mixed")
    return {
        precision: policy.adapted(layer_schemes(precision, block)).weight
        for precision in dict.fromkeys(precisions)
    }


def _samples(context: BuildContext, data: Path | None, tokens: int) -> list[Any]:
    """Held-out windows of a decoder's text; the examples that the export kept of other models."""
    from calibration.report.heldout import HELDOUT_FILE, WINDOW, windows
    from pipeline.steps.calibrate import tokenizer_of

    facts = context.facts
    if facts.kind != "decoder":
        if data is not None:
            raise BadInput(f"{context.shown} is no decoder ({LOGITS.name} of text); leave --data out")
        return context.parity_inputs()
    tokenizer = tokenizer_of(context)
    if tokenizer is None:
        raise BadInput(f"{context.shown} has no tokenizer, so text cannot be scored")
    if facts.image_encoder is not None:
        raise BadInput(f"{context.shown} holds a vision-language model, whose layers are not measured")
    return windows(data or HELDOUT_FILE, tokenizer, min(WINDOW, facts.max_length), tokens)
