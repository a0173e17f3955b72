"""ONNX Runtime sessions of any stage's graph, for a comparison."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir
import onnxruntime as ort

from pipeline.graph import load_graph, save_graph
from pipeline.targets.pools import drop_pool_outputs
from plugins.cpu.build import registered
from plugins.schemas import DOMAIN


@contextmanager
def graph_session(graph: Path, scratch: Path) -> Iterator[ort.InferenceSession]:
    """A session for a graph between stages. Pools as outputs are dropped: the operator writes in place.

    `scratch` is a path in the graph's folder, for a copy of the graph without its weights; it is removed.
    """
    model = load_graph(graph)
    drop_pool_outputs(model)
    try:
        save_graph(model, scratch)
        yield _session(scratch, ort.GraphOptimizationLevel.ORT_ENABLE_BASIC)
    finally:
        scratch.unlink(missing_ok=True)


def engine_session(graph: Path) -> ort.InferenceSession:
    """A session for a compiled engine, loaded as the runtime loads it: nothing is optimized any more."""
    return _session(graph, ort.GraphOptimizationLevel.ORT_DISABLE_ALL)


def uses_plugin(model: ir.Model) -> bool:
    """Whether the graph holds an operator of domain `slipway`, and so needs the plugin library."""
    return any(node.domain == DOMAIN for node in model.graph.all_nodes())


def _session(graph: Path, level: ort.GraphOptimizationLevel) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors; warnings are about unused initializers and the like
    options.graph_optimization_level = level
    # A comparison runs once: weights rearranged for speed would cost their size again.
    options.add_session_config_entry("session.disable_prepacking", "1")
    registered(options)
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
