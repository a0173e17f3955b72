"""The linear contract of decoders: what engines take whose attention knows no blocks (`pipeline/targets/native`).

A sequence owns one slot, a stretch of `max_length` positions in each cache, so an engine's blocks are its slots:
`block_size` is `max_length`. A step takes `length` new tokens of each of `batch` slots: one of many, or many of one.
"""

from __future__ import annotations

from collections.abc import Sequence

from .contract import KVSpec, key_cache, key_cache_out, value_cache, value_cache_out
from .tensor_spec import TensorSpec

LINEAR_CACHE = "linear_cache"
"""Feature of a decoder's engine: it is of this contract."""

LINEAR_STEP_INPUTS: tuple[TensorSpec, ...] = (
    TensorSpec("input_ids", "int32", ("batch", "length"), "new tokens of each slot"),
    TensorSpec(
        "past_lens", "int32", ("batch",), "positions of the slot that hold tokens; the new ones follow"
    ),
    TensorSpec("logits_indices", "int32", ("selected",), "rows of batch * length whose logits are wanted"),
)


def linear_caches(kv: Sequence[KVSpec], max_length: int) -> tuple[tuple[TensorSpec, TensorSpec], ...]:
    """Each cache as input and as output, which are bound to the same memory: [batch, kv_heads, max_length, dim]."""
    pairs = []
    for layer, spec in enumerate(kv):
        for name, out, dim in (
            (key_cache(layer), key_cache_out(layer), spec.key_dim),
            (value_cache(layer), value_cache_out(layer), spec.value_dim),
        ):
            shape = ("batch", spec.kv_heads, max_length, dim)
            pairs.append((TensorSpec(name, spec.dtype, shape), TensorSpec(out, spec.dtype, shape)))
    return tuple(pairs)
