"""An exported encoder through the later stages, in this process: fused, lowered, compiled, loaded as served."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import onnx_ir as ir

from model_repo.runtime.onnxruntime_executor import session
from pipeline.fuse import FusionReport, fuse
from pipeline.graph import load_graph, save_graph
from pipeline.recipe import FuseRecipe, TargetRecipe
from pipeline.targets import get_target
from plugins.cpu.build import library_path


class Compiled(NamedTuple):
    """An engine in ONNX Runtime, and what fusion did."""

    session: Any
    report: FusionReport


def compiled(model: ir.Model, folder: Path) -> Compiled:
    """The engine of an export; `model` keeps its nodes."""
    save_graph(model, folder / "export.onnx")
    graph = load_graph(folder / "export.onnx")
    report = fuse(graph, FuseRecipe(), max_length=None)
    target = get_target("onnxruntime")
    target.lower(graph, "encoder")
    save_graph(graph, folder / "lower.onnx")
    target.compile(folder / "lower.onnx", folder / "engine.onnx", TargetRecipe())
    return Compiled(session(folder / "engine.onnx", library_path(), threads=1), report)
