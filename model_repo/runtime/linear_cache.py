"""The linear contract of decoders: what engines take whose attention knows no blocks (`pipeline/targets/native`).

A sequence owns one slot, a stretch of `max_length` positions in each cache, so an engine's blocks are its slots:
`block_size` is `max_length`. A step takes `length` new tokens of each of `batch` slots: one of many, or many of one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from .contract import (
    KV_DTYPE_BYTES,
    EngineSpec,
    KVSpec,
    key_cache,
    key_cache_out,
    value_cache,
    value_cache_out,
)
from .device import ALIGNMENT
from .errors import BadInput
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


def check_slots(spec: EngineSpec) -> None:
    """Raises BadInput for slots that begin where no engine takes a tensor, and says which lengths do."""
    length = spec.decoder_limits.max_length
    for layer in spec.kv:
        for dim in (layer.key_dim, layer.value_dim):
            position = layer.kv_heads * dim * KV_DTYPE_BYTES[layer.dtype]
            if position * length % ALIGNMENT:
                step = ALIGNMENT // math.gcd(position, ALIGNMENT)
                raise BadInput(
                    f"a slot of {length} positions takes {position * length} bytes of a cache, and tensors begin at "
                    f"multiples of {ALIGNMENT} bytes; give --max-length {max(length // step, 1) * step}, a multiple of "
                    f"{step}"
                )
