"""What a target is: where engines run, what they can do there, and how a graph becomes one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    import onnx_ir as ir

    from model_repo.runtime.contract import EngineSpec
    from pipeline.recipe import Recipe, TargetRecipe

Kind = Literal["decoder", "encoder", "tensors"]


@dataclass(frozen=True)
class BucketRule:
    """Which numbers of tokens a step may have.

    A step is padded up to at least `min_tokens` and to a multiple of `token_multiple`, so that a request's
    numbers do not depend on who else is in the step, and so that buffers are bound for few sizes.
    """

    min_tokens: int
    token_multiple: int

    def padded(self, tokens: int) -> int:
        """The size of a step for `tokens` tokens."""
        size = max(tokens, self.min_tokens)
        return -(-size // self.token_multiple) * self.token_multiple


@dataclass(frozen=True)
class TargetDescriptor:
    """What the pipeline and the scheduler need to know of a target.

    `cache`: paged (blocks of a shared pool) or linear (one stretch of memory a sequence). `precisions` and
    `kv_dtypes` are the recipe's values that the target takes. `features` names what it can do beyond the
    plain contract. `engine` is the file that it compiles to. `on_cpu`: whether its engines run on any machine, so that
    a build compares and evaluates them; others take a GPU. `left_out`: fusion rules whose operators it has no
    counterpart of.
    """

    name: str
    cache: Literal["paged", "linear"]
    buckets: BucketRule
    precisions: tuple[str, ...]
    kv_dtypes: tuple[str, ...]
    features: frozenset[str] = frozenset()
    engine: str = "engine.onnx"
    on_cpu: bool = True
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lowering:
    """What else decides how a graph is lowered: the recipe's precision, a decoder's longest sequence in tokens, names
    of nodes that stay in float32 beside 16 bit, and what becomes plugins (native or plugin, as TargetRecipe says)."""

    precision: str = "fp32"
    max_length: int = 0
    keep_float32: tuple[str, ...] = ()
    attention: str = "native"
    int4_gemm: str = "native"


AS_IT_IS = Lowering()


class Problem(NamedTuple):
    """Something that keeps a target from working on this machine."""

    what: str
    remedy: str


class Target(Protocol):
    """One way to run engines. Implementations keep no state."""

    @property
    def descriptor(self) -> TargetDescriptor:
        """What the target can do."""

    def check(self, recipe: Recipe) -> None:
        """Raises BadInput, before anything is built, for what of a recipe the target cannot do."""

    def lower(self, model: ir.Model, kind: Kind, settings: Lowering = AS_IT_IS) -> None:
        """Rewrites a fused graph, in place, into the operators that the target knows.

        Raises BadInput when the graph holds an operator that the target cannot run.
        """

    def compile(
        self, lowered: Path, engine: Path, recipe: TargetRecipe, spec: EngineSpec | None = None
    ) -> Mapping[str, Any]:
        """Makes the engine file `engine` of the graph file `lowered`, in the same folder or another.

        Weights lie in `weights/` beside the engine where it does not hold them. `spec`: the engine's limits, for
        targets that tune for shapes. Gives what the builder tells of the engine, as plain JSON; empty where it tells
        nothing. Takes at most three times the weights in memory.
        """

    def requirements(self) -> list[Problem]:
        """What is missing here to compile for this target; empty when nothing is."""
