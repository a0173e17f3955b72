"""`bench --choose`: the fastest precision of a decoder within an allowed loss, measured here, written into its recipe.

Each candidate is quantized, lowered and compiled in a folder of its own beside the build, and removed afterwards.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from model_repo.runtime.contract import EngineSpec
from model_repo.runtime.errors import BadInput
from model_repo.runtime.manifest import Manifest

from .bench import Rate, bench
from .builder import build, stages_of
from .evaluate import Given, evaluate
from .quantize.policy import policy_of
from .recipe import QuantizeRecipe, Recipe
from .workspace import MANIFESTS, RECIPE, REPOSITORY

CANDIDATES = ("fp32", "int8", "int8-weights", "int4", "w4a8")
WORKLOADS = ("streams", "one", "prefill")
"""What is to be fast: decoding for as many streams as are measured, for one, or reading prompts."""
DEFAULT_LOSS = 0.01
TOKENS = 20_000


@dataclass(frozen=True)
class Measured:
    """One candidate: its section of the recipe, the increase of perplexity beside float32, and its rates."""

    quantize: QuantizeRecipe
    loss: float
    rates: tuple[Rate, ...]

    def rate(self, workload: str) -> float:
        """Tokens per second of one of WORKLOADS."""
        if workload == "prefill":
            return self.rates[0].value
        return self.rates[1 if workload == "one" else -1].value


def pick(measured: Sequence[Measured], max_loss: float, workload: str) -> Measured:
    """The fastest whose loss is at most `max_loss`. Raises BadInput when there is none."""
    allowed = [item for item in measured if item.loss <= max_loss]
    if not allowed:
        least = min(measured, key=lambda item: item.loss)
        raise BadInput(
            f"no precision loses at most {max_loss:.2%} of perplexity; the least is {least.quantize.precision} with "
            f"{least.loss:+.2%}; allow more with --max-loss"
        )
    return max(allowed, key=lambda item: item.rate(workload))


def allowed_loss(recipe: Recipe) -> float:
    """The increase of perplexity that the recipe accepts, or 1%."""
    for name, _, bound, _ in recipe.accept.limits:
        if name == "max_perplexity_increase":
            return bound
    return DEFAULT_LOSS


def choose(
    folder: Path,
    max_loss: float | None = None,
    workload: str = "streams",
    *,
    precisions: Sequence[str] = CANDIDATES,
    tokens: int = TOKENS,
    threads: int | None = None,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Measured, list[Measured]]:
    """The choice and all candidates; the recipe in `folder` takes the choice, its artifacts stay as they are.

    `max_loss`: increase of perplexity over `tokens` held-out tokens; None: what the recipe accepts. Raises BadInput:
    nothing built, no decoder, nothing within the loss.
    """
    recipe = Recipe.load(folder / RECIPE)
    spec = Manifest.read(folder / MANIFESTS["compile"]).engine
    if spec is None or spec.kind != "decoder":
        raise BadInput(
            f"{folder} holds no decoder; --choose compares what decoders lose and how fast they are"
        )
    measured = []
    for done, precision in enumerate(precisions):
        told(done, len(precisions))
        policy_of(recipe.target.name, precision)
        section = dataclasses.replace(recipe.quantize, precision=precision, layers=None)
        measured.append(
            _measure(folder, dataclasses.replace(recipe, quantize=section), spec, tokens, threads)
        )
    told(len(precisions), len(precisions))
    choice = pick(measured, allowed_loss(recipe) if max_loss is None else max_loss, workload)
    dataclasses.replace(recipe, quantize=choice.quantize).dump(folder / RECIPE)
    return choice, measured


def _measure(folder: Path, recipe: Recipe, spec: EngineSpec, tokens: int, threads: int | None) -> Measured:
    """Builds the engine of `recipe` from the fused graph in `folder`, and measures it."""
    wanted = [name for name in stages_of(recipe) if name in ("calibrate", "quantize", "lower", "compile")]
    with tempfile.TemporaryDirectory(dir=folder.absolute().parent, prefix=".choose-") as name:
        candidate = Path(name) / "candidate"
        shutil.copytree(folder, candidate, ignore=shutil.ignore_patterns(REPOSITORY))
        build(recipe, candidate, stages=wanted)
        report = evaluate(candidate, given=Given(tokens=tokens), compare_always=True, threads=threads)
        built = Manifest.read(candidate / MANIFESTS["compile"]).engine
        assert built is not None
        rates = bench(candidate, built, threads)
        return Measured(recipe.quantize, float(report["perplexity_increase"]), tuple(rates))
