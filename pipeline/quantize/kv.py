"""Pools of keys and values in int8 or FP8 (E4M3), with a scale for each head that calibration found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx_ir as ir

from calibration.schemes import Scheme
from model_repo.runtime.contract import KVSpec, key_cache, key_cache_out, value_cache, value_cache_out
from plugins.schemas import DOMAIN, PAGED_ATTENTION

if TYPE_CHECKING:
    from calibration.scales import Scales


class _Pools(NamedTuple):
    scheme: Scheme
    stored: ir.DataType


_TYPES = {
    "int8": _Pools(Scheme("int8"), ir.DataType.INT8),
    "fp8": _Pools(Scheme("e4m3"), ir.DataType.FLOAT8E4M3FN),
}
"""By the recipe's kv_dtype."""


def quantize_pools(model: ir.Model, kv: Sequence[KVSpec], dtype: str, ranges: Scales) -> None:
    """Gives the pools of every attention node `dtype`, int8 or fp8, and their scales [kv_heads] as inputs, in place.

    A key is stored as round(key / scale), within -127 to 127 or to the nearest E4M3 number within -448 to 448, and read
    as code * scale. Raises BadInput where `ranges` lacks a pool, or a head of it was zero throughout.
    """
    scheme, stored = _TYPES[dtype]
    graph = model.graph
    names = {value.name: value for value in (*graph.inputs, *graph.outputs)}
    by_input = {
        node.inputs[PAGED_ATTENTION.input_index("key_cache")]: node
        for node in graph
        if node.domain == DOMAIN and node.op_type == PAGED_ATTENTION.name
    }
    for layer, spec in enumerate(kv):
        node = by_input[names[key_cache(layer)]]
        node.resize_inputs(max(len(node.inputs), PAGED_ATTENTION.input_index("v_scale") + 1))
        for pool, place in ((key_cache(layer), "k_scale"), (value_cache(layer), "v_scale")):
            scales, _ = ranges.scales_of(pool, scheme)
            array = np.broadcast_to(scales, (spec.kv_heads,)).astype(np.float32)
            name = f"{pool}.scale"
            constant = ir.Value(
                name=name,
                type=ir.TensorType(ir.DataType.FLOAT),
                shape=ir.Shape(array.shape),
                const_value=ir.tensor(np.ascontiguousarray(array), name=name),
            )
            graph.register_initializer(constant)
            node.replace_input_with(PAGED_ATTENTION.input_index(place), constant)
        for name in (key_cache(layer), value_cache(layer), key_cache_out(layer), value_cache_out(layer)):
            if name in names:
                names[name].type = ir.TensorType(stored)
