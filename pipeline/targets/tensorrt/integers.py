"""int64 constants that TensorRT would cut to 32 bits.

Its networks hold integers in 64 bits, but its ONNX parser casts some inputs to int32, which wraps them without a word
(onnx-tensorrt's `castHelper(..., kINT32)`; seen in TensorRT-RTX 1.7: a OneHot of depth 3000000000 gets an axis of
-1294967296).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from model_repo.runtime.errors import BadInput

CUT: Mapping[str, tuple[int, ...]] = {
    "Loop": (0,),  # trip count
    "NonMaxSuppression": (2,),  # boxes of a class
    "OneHot": (0, 1),  # indices, depth
    "RoiAlign": (2,),  # images of the batch
}
"""Standard operators and their inputs that are cast. Plugins, which have another domain, get int32 altogether."""

_INT32 = np.iinfo(np.int32)
_NO_LIMIT = np.iinfo(np.int64).max
"""What exporters write for a Loop without a trip count; cut to int32 it is -1, which means the same."""


def check_integers(model: ir.Model) -> None:
    """Raises BadInput that names the first node which would read another number than the graph's."""
    for node in model.graph.all_nodes():
        for value in _cut_inputs(node):
            tensor = ir.convenience.get_const_tensor(value)
            if tensor is None or tensor.dtype != ir.DataType.INT64:
                continue
            numbers = tensor.numpy()
            wrong = numbers[(numbers < _INT32.min) | (numbers > _INT32.max)]
            if node.op_type == "Loop":
                wrong = wrong[wrong != _NO_LIMIT]
            if wrong.size:
                raise BadInput(
                    f"{node.op_type} {node.name!r} reads the int64 constant {value.name!r}, which holds "
                    f"{int(wrong.flat[0])}; TensorRT takes {_INT32.min} to {_INT32.max} there. Keep it smaller, or "
                    "build for onnxruntime"
                )


def _cut_inputs(node: ir.Node) -> Iterator[ir.Value]:
    for place, value in enumerate(node.inputs):
        if value is not None and (node.domain != "" or place in CUT.get(node.op_type, ())):
            yield value
