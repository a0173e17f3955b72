"""Parts of a graph computed at build time by onnx's reference implementation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator


def evaluate(
    nodes: Sequence[ir.Node],
    opset_imports: Mapping[str, int],
    known: Mapping[str, npt.NDArray[Any]],
    outputs: Sequence[ir.Value],
) -> list[npt.NDArray[Any]]:
    """`outputs` of standard-operator `nodes` (in order), given by name all that they read and do not make."""
    graph = onnx.helper.make_graph(
        [ir.serde.serialize_node(node) for node in nodes],
        "part",
        [
            onnx.helper.make_tensor_value_info(
                name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), list(array.shape)
            )
            for name, array in known.items()
        ],
        [onnx.helper.make_empty_tensor_value_info(value.name or "") for value in outputs],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", opset_imports.get("", 24))]
    )
    results = ReferenceEvaluator(model).run(None, dict(known))
    return [np.asarray(result) for result in results]
