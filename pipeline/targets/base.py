"""What a target is: where engines run, what they can do there, and how a graph becomes one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    import onnx_ir as ir

    from pipeline.recipe import TargetRecipe

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
    plain contract.
    """

    name: str
    cache: Literal["paged", "linear"]
    buckets: BucketRule
    precisions: tuple[str, ...]
    kv_dtypes: tuple[str, ...]
    features: frozenset[str] = frozenset()


class Problem(NamedTuple):
    """Something that keeps a target from working on this machine."""

    what: str
    remedy: str


class Target(Protocol):
    """One way to run engines. Implementations keep no state."""

    @property
    def descriptor(self) -> TargetDescriptor:
        """What the target can do."""

    def lower(self, model: ir.Model, kind: Kind) -> None:
        """Rewrites a fused graph, in place, into the operators that the target knows.

        Raises BadInput when the graph holds an operator that the target cannot run.
        """

    def compile(self, lowered: Path, engine: Path, recipe: TargetRecipe) -> None:
        """Makes the engine file `engine` of the graph file `lowered`, in the same folder or another.

        Weights lie in `weights/` beside the engine. Takes at most three times the weights in memory.
        """

    def requirements(self) -> list[Problem]:
        """What is missing here to compile for this target; empty when nothing is."""
