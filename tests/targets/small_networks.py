"""Networks of a few nodes with an input x and an output y, for builders and parsers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
from onnx import TensorProto, helper


def network(
    nodes: Sequence[onnx.NodeProto],
    constants: Sequence[onnx.TensorProto] = (),
    dtype: int = TensorProto.FLOAT,
    width: int = 8,
    opset: int = 21,
    domain: str = "",
) -> Any:
    """x and y of [n, width]; `domain`: one more that nodes are of."""
    x, y = (helper.make_tensor_value_info(name, dtype, ["n", width]) for name in "xy")
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    graph = helper.make_graph(list(nodes), "network", [x], [y], list(constants))
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)
