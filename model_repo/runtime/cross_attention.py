"""Cross-attention in the contract: its KV group, its step inputs, and the encoder whose output is attended to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import BadInput
from .log_mel import LogMel
from .tensor_spec import TensorSpec

CROSS = 1
"""The KV group of cross-attention: keys and values of a request's encoder positions."""

CROSS_INPUTS: tuple[TensorSpec, ...] = (
    TensorSpec(
        "cu_seqlens_1",
        "int32",
        ("tokens + 1",),
        "0, 1, 2, ...: in this group every token is a sequence of its own, so that it sees all encoder positions of "
        "its request by the causal operator; padding rows have none",
    ),
    TensorSpec("past_lens_1", "int32", ("tokens",), "encoder positions of the token's request, less one"),
    TensorSpec(
        "block_table_1",
        "int32",
        ("tokens", "max_blocks_1"),
        "blocks of the encoder positions of the token's request, -1 beyond their end",
    ),
    TensorSpec("slot_mapping_1", "int32", ("tokens",), "-1: steps write nothing to this group"),
)
"""Step inputs of a decoder with cross-attention, beside `STEP_INPUTS`."""


def cross_key(layer: int) -> str:
    """Name of an encoder's output that layer `layer` of the decoder attends to, [1, positions, kv_heads, key_dim]."""
    return f"cross_key_{layer}"


def cross_value(layer: int) -> str:
    """As `cross_key`, the values: [1, positions, kv_heads, value_dim]."""
    return f"cross_value_{layer}"


POSITIONS = "positions"
"""The dimension of an encoder's input that is as long as its output."""


@dataclass(frozen=True)
class EncoderSpec:
    """The encoder of an encoder-decoder. It runs once a request, alone, before the request's first step.

    `graph`: path beside the decoder's graph. `input`: its only input; axis 0 is 1, and at most one other size is a
    name, POSITIONS. Outputs are `cross_key` and `cross_value` of every layer of group CROSS, float32.
    `max_positions`: the longest output, or its only length where no size of the input is a name. `prompt_ids`: the
    decoder's tokens that a request begins with when it gives none. `log_mel`: how its input is made of audio.
    """

    graph: str
    input: TensorSpec
    max_positions: int
    prompt_ids: tuple[int, ...] = ()
    log_mel: LogMel | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EncoderSpec:
        """The inverse of `dataclasses.asdict`. Raises TypeError or KeyError when it does not fit."""
        read = {"input": TensorSpec.from_dict(data["input"]), "prompt_ids": tuple(data["prompt_ids"])}
        log_mel = LogMel(**data["log_mel"]) if data.get("log_mel") else None
        return cls(**{**data, **read, "log_mel": log_mel})

    def num_positions(self, shape: Sequence[int]) -> int:
        """Positions of the output for an input of this shape.

        Raises BadInput unless the engine takes such an input.
        """
        spec = self.input
        wanted = f"[{', '.join(map(str, spec.shape))}]"
        fits = len(shape) == len(spec.shape) and all(
            size == dim for size, dim in zip(shape, spec.shape, strict=True) if isinstance(dim, int)
        )
        if not fits:
            raise BadInput(
                f"the encoder's input {spec.name!r} has the shape {list(shape)}; it must be {wanted}"
            )
        if POSITIONS not in spec.shape:
            return self.max_positions
        positions = shape[spec.shape.index(POSITIONS)]
        if not 1 <= positions <= self.max_positions:
            raise BadInput(
                f"the encoder's input {spec.name!r} has {positions} positions; it must have 1 to {self.max_positions}"
            )
        return positions
