"""Constants computed once at build time, and each of them kept once.

Nodes that compute the same from the same are left to `shared_subgraphs`.

Only small constants are folded (shapes, axes, scalars, frequencies; a bias of zeros may come of them): weights
are parameters with an origin, and what is computed from them is left to the rules that know them.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir
from onnx_ir.passes import common as passes

from .evaluation import evaluate
from .matching import add_weight, constant, is_weight, replace
from .rule import Matches, Rule
from .weights import read_origin

_RANDOM = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"}
)
_LARGEST = 1 << 16
"""Elements of a result that is kept at most: more would cost more to store than to compute."""
_SUBGRAPH = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


class ConstantFolding(Rule):
    """Nodes whose inputs are all small constants become constants; equal constants become one."""

    name: ClassVar[str] = "constant_folding"

    def rewrite(self, model: ir.Model) -> Matches:
        """Counts the nodes folded; dropped identities show in the node counts."""
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        folded = sum(_fold(model, node) for node in list(model.graph))
        _merge_equal_constants(model.graph)
        ir.passes.Sequential(passes.IdentityEliminationPass(), passes.RemoveUnusedNodesPass())(model)
        return Matches(folded)


def _fold(model: ir.Model, node: ir.Node) -> bool:
    """Replaces the outputs of a node with constants. False when that cannot be done."""
    if node.domain != "" or node.op_type in _RANDOM or any(value.is_graph_output() for value in node.outputs):
        return False
    if any(attribute.type in _SUBGRAPH for attribute in node.attributes.values()):
        return False
    known = {}
    for value in node.inputs:
        if value is None:
            continue
        array = constant(value)
        if array is None or not is_weight(value) or read_origin(value):
            return False
        known[value.name or ""] = array
    if not known:
        return False
    arrays = evaluate([node], model.opset_imports, known, node.outputs)
    if any(array.size > _LARGEST for array in arrays):
        return False
    for value, array in zip(node.outputs, arrays, strict=True):
        name = f"{value.name}_folded"
        replace(value, add_weight(model.graph, ir.tensor(array, name=name), name))
    return True


def _merge_equal_constants(graph: ir.Graph) -> None:
    """One initializer for equal small constants. Weights stay apart: each has an origin of its own."""
    seen: dict[tuple[ir.DataType, tuple[int, ...], bytes], ir.Value] = {}
    for value in list(graph.initializers.values()):
        array = constant(value)
        if array is None or value.is_graph_output() or read_origin(value):
            continue
        tensor = value.const_value
        assert tensor is not None
        first = seen.setdefault((tensor.dtype, array.shape, tensor.tobytes()), value)
        if first is not value:
            value.replace_all_uses_with(first)
            del graph.initializers[value.name or ""]
