"""An exported encoder through the later stages, in this process: fused, lowered, compiled, loaded as served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir

from pipeline.fuse import fuse
from pipeline.graph import load_graph, save_graph
from pipeline.parity.sessions import engine_session
from pipeline.recipe import FuseRecipe, TargetRecipe
from pipeline.targets import get_target


def compiled(model: ir.Model, folder: Path) -> Any:
    """An ONNX Runtime session of the engine; `model` keeps its nodes."""
    save_graph(model, folder / "export.onnx")
    graph = load_graph(folder / "export.onnx")
    fuse(graph, FuseRecipe(), max_length=None)
    target = get_target("onnxruntime")
    target.lower(graph, "encoder")
    save_graph(graph, folder / "lower.onnx")
    target.compile(folder / "lower.onnx", folder / "engine.onnx", TargetRecipe())
    return engine_session(folder / "engine.onnx")
