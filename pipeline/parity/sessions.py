"""ONNX Runtime sessions of any stage's graph, for a comparison."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir
import onnxruntime as ort
from onnx_ir.passes import common as passes

from model_repo.runtime.onnxruntime_executor import SLOWER
from pipeline.graph import load_graph, save_graph
from pipeline.precision.convert import widen
from plugins.cpu.build import registered
from plugins.pools import drop_pool_outputs
from plugins.schemas import DOMAIN

from .plugin_attention import operators_for_flash_attention
from .plugin_products import products_for_plugins
from .plugins import operators_for_plugins


@contextmanager
def graph_session(graph: Path, scratch: Path) -> Iterator[ort.InferenceSession]:
    """A session for a graph between stages. Pools as outputs are dropped: the operator writes in place.

    Plugins of TensorRT are run by the operators that they stand for.
    `scratch` is a path in the graph's folder, for a copy of the graph without its weights; it is removed.
    """
    model = computable_graph(graph)
    try:
        save_graph(model, scratch)
        yield _session(scratch, ort.GraphOptimizationLevel.ORT_ENABLE_BASIC)
    finally:
        scratch.unlink(missing_ok=True)


def computable_graph(graph: Path) -> ir.Model:
    """A lowered graph as ONNX Runtime's CPU computes it: plugins by the operators that they stand for, pools no
    outputs, and 16 bit in float32, rounded after each node: it computes nothing of bfloat16, and chains of float16 in
    float32, where nothing overflows."""
    model = load_graph(graph)
    pools = operators_for_plugins(model)
    operators_for_flash_attention(model)
    products_for_plugins(model)
    drop_pool_outputs(model)
    _read_weights_as_stored(model)
    dtypes = {value.dtype for node in model.graph for value in node.outputs}
    if ir.DataType.BFLOAT16 in dtypes:
        widen(model, "bf16")
    elif ir.DataType.FLOAT16 in dtypes:
        widen(model, "fp16")
    for value, kept in pools.items():
        value.type = kept  # the operator rounds what it writes there
    return model


def engine_session(graph: Path) -> ort.InferenceSession:
    """A session for a compiled engine, loaded as the runtime loads it: nothing but convolutions is optimized."""
    levels = ort.GraphOptimizationLevel
    return _session(
        graph, levels.ORT_ENABLE_LAYOUT if has_convolutions(load_graph(graph)) else levels.ORT_DISABLE_ALL
    )


def has_convolutions(model: ir.Model) -> bool:
    """Whether a compiled graph has convolutions whose layout is chosen where it is loaded."""
    return any(node.op_type in ("Conv", "FusedConv", "QLinearConv") for node in model.graph)


def uses_plugin(model: ir.Model) -> bool:
    """Whether the graph holds an operator of domain `slipway`, and so needs the plugin library."""
    return any(node.domain == DOMAIN for node in model.graph.all_nodes())


def _read_weights_as_stored(model: ir.Model) -> None:
    """Products with the transpose of a weight become com.microsoft.FusedMatMul, in place.

    ONNX Runtime would transpose such weights as it loads the graph: the pages that are mapped from the disk would
    become a copy of all weights in memory.
    """
    for node in list(model.graph):
        if node.op_type != "MatMul" or node.domain != "":
            continue
        weight = _transposed_weight(node.inputs[1])
        if weight is None:
            continue
        old = node.outputs[0]
        product = ir.node(
            "FusedMatMul",
            [node.inputs[0], weight],
            {"transB": 1},
            domain="com.microsoft",
            outputs=[ir.Value(name=f"{old.name}_product", type=old.type, shape=old.shape)],
            name=node.name,
        )
        model.graph.insert_before(node, product)
        new, name = product.outputs[0], old.name
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        model.graph.remove(node, safe=True)  # the transpose has no reader any more
        new.name = name
        model.opset_imports["com.microsoft"] = 1
    passes.RemoveUnusedNodesPass()(model)


def _transposed_weight(value: ir.Value | None) -> ir.Value | None:
    """The matrix whose transpose `value` is, when it is a weight."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "Transpose" or node.domain != "":
        return None
    weight = node.inputs[0]
    if weight is None or weight.const_value is None or len(weight.const_value.shape) != 2:
        return None
    turned = node.attributes.get("perm")
    return weight if turned is None or tuple(turned.as_ints()) == (1, 0) else None


def _session(graph: Path, level: ort.GraphOptimizationLevel) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors; warnings are about unused initializers and the like
    options.graph_optimization_level = level
    # A comparison runs once: weights rearranged for speed would cost their size again.
    options.add_session_config_entry("session.disable_prepacking", "1")
    if level == ort.GraphOptimizationLevel.ORT_ENABLE_LAYOUT:
        options.add_session_config_entry("session.disable_quant_qdq", "1")  # as when it was compiled
    registered(options)
    return ort.InferenceSession(
        graph, options, providers=["CPUExecutionProvider"], disabled_optimizers=SLOWER
    )
