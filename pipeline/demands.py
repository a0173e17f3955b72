"""What a recipe asks of results: how far a stage may be from the one before, and an engine from float32."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from model_repo.runtime.errors import BadInput

from .section import Section, setting

if TYPE_CHECKING:
    from .recipe import QuantizeRecipe


@dataclass(frozen=True)
class AcceptRecipe(Section):
    """What an engine's accuracy on held-out data must be, beside float32; beyond it the build ends with exit code 3."""

    max_perplexity_increase: str | None = setting(None, "such as 1%: decoders")
    max_kl: float | None = setting(None, "nats: decoders and labels", minimum=0)
    min_top1: float | None = setting(
        None, "share of positions or rows with the same likeliest choice", minimum=0, maximum=1
    )
    min_cosine: float | None = setting(None, "mean cosine: embeddings, named tensors", minimum=-1, maximum=1)
    min_retrieval: float | None = setting(
        None, "share of sentences with the same nearest one: embeddings", minimum=0, maximum=1
    )
    data: str | None = setting(
        None, "held-out .txt, or .npz for named tensors; default: the demo's held-out text"
    )
    tokens: int = setting(60_000, "tokens of held-out text scored at most", minimum=100)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.limits  # noqa: B018  # refuses what is no share

    @property
    def limits(self) -> tuple[tuple[str, str, float, str], ...]:
        """Field, figure of the report, bound, and 'at most' or 'at least', for each rule that is set."""
        increase = self.max_perplexity_increase
        rules = (
            ("max_perplexity_increase", "perplexity_increase", _share(increase), "at most"),
            ("max_kl", "kl", self.max_kl, "at most"),
            ("min_top1", "top1", self.min_top1, "at least"),
            ("min_cosine", "mean_cosine", self.min_cosine, "at least"),
            ("min_retrieval", "retrieval", self.min_retrieval, "at least"),
        )
        return tuple((name, figure, bound, way) for name, figure, bound, way in rules if bound is not None)


def _share(text: str | None) -> float | None:
    """1% or 0.01 as a number. Raises BadInput for what is neither."""
    if text is None:
        return None
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise BadInput(f"accept.max_perplexity_increase is {text!r}; it must be a share such as 1% or 0.01")
    return value


@dataclass(frozen=True)
class Tolerance(Section):
    """How far a stage may be from the one before it."""

    min_cosine: float = setting(0.99999, "least cosine of any row of outputs", minimum=-1, maximum=1)
    min_top1: float = setting(1.0, "least share of rows with the same largest logit", minimum=0, maximum=1)
    max_relative: float = setting(
        1e-3, "named tensors: largest difference of a row, relative to the row's norm", minimum=0
    )


@dataclass(frozen=True)
class ParityRecipe(Section):
    """Tolerance of each stage against the one before; beyond it the build ends with exit code 3."""

    export: Tolerance = field(default_factory=Tolerance)  # exported graph against the torch module
    fuse: Tolerance = field(default_factory=Tolerance)  # fused against exported graph
    # quantized against fused graph: only what is broken falls below; `accuracy` judges the loss
    quantize: Tolerance = field(default_factory=lambda: Tolerance(0.8, 0.5, 0.5))
    lower: Tolerance = field(default_factory=Tolerance)  # lowered against fused graph
    compile: Tolerance = field(default_factory=Tolerance)  # engine against lowered graph
    # lower and compile of a quantized graph: an activation beside the border of two codes may go to either
    codes: Tolerance = field(default_factory=lambda: Tolerance(0.995, 0.9, 0.1))
    # lower to a graph in 16 bit, against float32
    narrow: Tolerance = field(default_factory=lambda: Tolerance(0.99, 0.9, 0.1))

    def of(self, stage: str, quantize: QuantizeRecipe) -> Tolerance | None:
        """The tolerance of a stage in a build of this precision; None for a stage that has none."""
        return getattr(self, self.setting(stage, quantize), None)

    @staticmethod
    def setting(stage: str, quantize: QuantizeRecipe) -> str:
        """The field that holds it."""
        if stage in ("lower", "compile") and quantize.quantizes:
            return "codes"
        return "narrow" if stage == "lower" and quantize.precision != "fp32" else stage
