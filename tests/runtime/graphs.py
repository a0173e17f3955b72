"""Small graphs written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

onnx = pytest.importorskip("onnx", reason="graphs are written with the package onnx")


def save(folder: Path, name: str, nodes: list[Any], inputs: list[Any], outputs: list[Any]) -> None:
    graph = onnx.helper.make_graph(nodes, name, inputs, outputs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, folder / "engine.onnx")
