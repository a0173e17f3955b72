"""A program of torch.export becomes an ONNX graph, in the steps of `torch.onnx.export(program, optimize=False)`.

They are called one by one because of three of them. The table of operators is built once a process. Decompositions
are left out where they would change nothing (`decompositions.py`). And the pass that writes casts where operators
promote types takes the values that torch.export recorded, where the exporter's runs the
whole program once more to have them; the casts are decided by the exporter's own rules. torch is pinned: another
version's names would fail on import, and the graphs are compared with torch.onnx.export's in
tests/export/test_to_onnx.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
from onnxscript import version_converter
from torch.export import ExportedProgram
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.experimental import _config
from torch.onnx._internal.exporter import _core, _fx_passes, _ir_passes
from torch.onnx._internal.fx.passes import InsertTypePromotion, type_promotion

from .decompositions import is_decomposed
from .translation import operators


def to_onnx(
    program: ExportedProgram,
    *,
    dynamic_shapes: tuple[Any, ...],
    input_names: Sequence[str],
    output_names: Sequence[str],
    opset: int,
) -> ir.Model:
    """The graph of `program`, which is changed in place. Raises what torch's exporter raises."""
    registry = operators(opset)
    # Sizes of 0 and 1 are sizes like others.
    with _config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        _fx_passes.remove_assertion_nodes(program.graph_module)
        if not is_decomposed(program, registry):
            program = _fx_passes.decompose_with_registry(program, registry)
            _fx_passes.remove_assertion_nodes(program.graph_module)  # those of the tracing
        for module in program.graph_module.modules():
            _promote_types(module)
    exported = _core._exported_program_to_onnx_program(program, registry=registry)
    version_converter.convert_version(exported.model, opset, fallback=True)
    _ir_passes.rename_inputs(exported.model, list(input_names))
    _ir_passes.rename_outputs(exported.model, list(output_names))
    exported._rename_dynamic_axes(dynamic_shapes)
    return exported.model


def _promote_types(module: GraphModule) -> None:
    """Writes the casts of the operators that promote types, in place."""
    promotion = InsertTypePromotion(module)
    promotion.interpreter = _Recorded(module, promotion.interpreter.type_promotion_table)
    promotion.run()


class _Recorded(type_promotion._TypePromotionInterpreter):
    """Gives the value recorded at a node in place of running it; what a cast changes is run, and recorded, anew."""

    def run_node(self, node: Node) -> Any:
        with self._set_current_node(node):
            rule = type_promotion.get_type_promotion_rule(node, self.type_promotion_table)
            if rule is not None:
                self._maybe_promote_node(node, rule)
        if node.op == "call_function" and "val" in node.meta:
            return node.meta["val"]
        return Interpreter.run_node(self, node)
