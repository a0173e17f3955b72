"""Puts an exported graph in order: constants folded, weights under their parameter names with their origin.

The exporter writes shapes and slice bounds as long chains of constants, and notes stack traces on every node.
Constants are folded here without touching weights, whose names and rows later stages rely on; of the notes
only the module that a node came from is kept, and the line of the model's source.
"""

from __future__ import annotations

import ast
import itertools
import json
import re
from pathlib import Path
from typing import TypedDict

import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes
from onnxscript.optimizer import fold_constants
from torch import nn

from pipeline.notes import MODULE, ORIGIN, SOURCE

SMALL = 1024
"""Constants of up to so many elements are folded (shapes, axes, scalars); larger ones are data."""

WRAPPED = "model"
"""Attribute of the exported wrappers that holds the model itself."""

_SCOPES = "pkg.torch.onnx.name_scopes"
_STACK = "pkg.torch.onnx.stack_trace"
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in [^\n]*\n\s*(?P<text>[^\n]*)')
_OWN_CODE = tuple(Path(__file__).resolve().parents[2] / folder for folder in ("pipeline", "plugins"))
_LIBRARIES = "site-packages"


class Origin(TypedDict):
    """Where a slice of a weight comes from: parameter name, its rows (None: all), whether transposed."""

    parameter: str
    rows: list[int] | None
    transposed: bool


def tidy(model: ir.Model, module: nn.Module) -> None:
    """In place. `module` holds the graph's weights; the exported wrapper called it WRAPPED."""
    graph = model.graph
    _name_weights(graph, module)
    weights = {name for name, value in graph.initializers.items() if ORIGIN in value.metadata_props}
    for node in graph.all_nodes():
        notes = {MODULE: _module(node), SOURCE: _source(node)}
        node.metadata_props.clear()
        node.metadata_props.update({key: note for key, note in notes.items() if note})
        for value in node.outputs:
            value.metadata_props.clear()
    for value in graph.inputs:
        value.metadata_props.clear()

    def may_fold(node: ir.Node) -> bool | None:
        """False where a weight is read; None leaves it to the folder's own rules."""
        reads_weight = any(value is not None and value.name in weights for value in node.inputs)
        return False if reads_weight else None

    fold_constants(
        model,
        onnx_shape_inference=True,
        input_size_limit=SMALL,
        output_size_limit=SMALL,
        should_fold=may_fold,
    )
    ir.passes.Sequential(
        passes.IdentityEliminationPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    )(model)
    _merge_equal_constants(graph)
    ir.passes.Sequential(passes.CommonSubexpressionEliminationPass(), passes.RemoveUnusedNodesPass())(model)


def _name_weights(graph: ir.Graph, module: nn.Module) -> None:
    """Weights under the first name that `module` has for their memory, once each, with their origin."""
    names: dict[tuple[int, torch.Size], str] = {}
    for parameter, tensor in itertools.chain(module.named_parameters(), module.named_buffers()):
        names.setdefault((tensor.data_ptr(), tensor.shape), parameter)
    first: dict[str, ir.Value] = {}
    for index, value in enumerate(list(graph.initializers.values())):
        raw = getattr(value.const_value, "raw", None)
        name = names.get((raw.data_ptr(), raw.shape)) if isinstance(raw, torch.Tensor) else None
        if name is None:
            continue
        if name in first:
            value.replace_all_uses_with(first[name])
            del graph.initializers[value.name or ""]
            continue
        # Out of the way first: the wrapper's name of one parameter can be the model's name of another.
        value.name = f"{index}:{name}"
        first[name] = value
    for name, value in first.items():
        value.name = name
        origin: list[Origin] = [{"parameter": name, "rows": None, "transposed": False}]
        value.metadata_props.clear()
        value.metadata_props[ORIGIN] = json.dumps(origin)


def _merge_equal_constants(graph: ir.Graph) -> None:
    """One initializer for equal small constants. Weights stay apart: each has an origin of its own."""
    seen: dict[tuple[ir.DataType, tuple[int, ...], bytes], ir.Value] = {}
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or ORIGIN in value.metadata_props or tensor.size > SMALL:
            continue
        shape = tuple(tensor.shape.numpy())
        first = seen.setdefault((tensor.dtype, shape, tensor.tobytes()), value)
        if first is not value:
            value.replace_all_uses_with(first)
            del graph.initializers[value.name or ""]


def _module(node: ir.Node) -> str:
    """The innermost module named in the exporter's notes, as the model names it; '' when there is none."""
    scopes = node.metadata_props.get(_SCOPES)
    if not scopes:
        return ""
    modules: list[str] = ast.literal_eval(scopes)[:-1]  # the last one is the torch operator's own name
    named = [module for module in modules if not module.startswith("_")]
    return named[-1].removeprefix(WRAPPED).removeprefix(".") if named else ""


def _source(node: ir.Node) -> str:
    """The innermost line of the model's own code in the exporter's notes; '' when there is none."""
    frames = list(_FRAME.finditer(node.metadata_props.get(_STACK, "")))
    for frame in reversed(frames):
        file = Path(frame["file"])
        place = _place(file)
        if not place.startswith("torch/") and not any(file.is_relative_to(folder) for folder in _OWN_CODE):
            return f"{place}:{frame['line']}: {frame['text']}"
    return ""


def _place(file: Path) -> str:
    """A source file's path within its package; of a file that is not installed, its folder's name and its own."""
    parts = file.parts
    if _LIBRARIES in parts:
        parts = parts[parts.index(_LIBRARIES) + 1 :]
        return "/".join(parts)
    return "/".join(parts[-2:])
