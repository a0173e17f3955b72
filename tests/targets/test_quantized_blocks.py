"""Weights with zero points as ONNX Runtime's own operators: they mean what the codes in the graph mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from calibration.schemes import Scheme, dequantize, quantize
from model_repo.runtime.errors import BadInput
from pipeline.quantize.nodes import dequantized
from pipeline.quantize.policy import POLICIES, policy_of
from pipeline.quantize.precisions import layer_schemes
from pipeline.targets.quantized_blocks import lower_zero_points

GENERATOR = np.random.default_rng(12)
WIDTH = 96


def value(name: str, kind: ir.DataType, shape: list[Any], array: Any = None) -> ir.Value:
    tensor = None if array is None else ir.tensor(array, name=name)
    return ir.Value(name=name, type=ir.TensorType(kind), shape=ir.Shape(shape), const_value=tensor)


def numbers(*shape: int) -> np.ndarray:
    """Far from zero in the mean, so that zero points are."""
    return (GENERATOR.standard_normal(shape) + 2).astype(np.float32)


def graph_of(bits: int, symmetric: bool = False) -> tuple[ir.Model, dict[str, np.ndarray]]:
    """A table tied to a Gemm with a bias, and a MatMul of 80 inputs; and what their weights mean, [out, in]."""
    arrays = {"table": numbers(50, WIDTH), "up": numbers(80, 40), "bias": numbers(50)}
    held = {name: value(name, ir.DataType.FLOAT, list(array.shape), array) for name, array in arrays.items()}
    ids, x = value("ids", ir.DataType.INT64, ["n"]), value("x", ir.DataType.FLOAT, ["n", 80])
    outs = {name: value(name, ir.DataType.FLOAT, ["n", None]) for name in ("rows", "logits", "product")}
    nodes = [
        ir.node("Gather", [held["table"], ids], outputs=[outs["rows"]]),
        ir.node("Gemm", [outs["rows"], held["table"], held["bias"]], {"transB": 1}, outputs=[outs["logits"]]),
        ir.node("MatMul", [x, held["up"]], outputs=[outs["product"]]),
    ]
    graph = ir.Graph(
        [ids, x],
        list(outs.values()),
        nodes=nodes,
        initializers=list(held.values()),
        opset_imports={"": 24},
        name="blocks",
    )
    scheme = Scheme("int4" if bits == 4 else "int8", "block", 32, symmetric)
    meant = {}
    for name, transposed in (("table", False), ("up", True)):
        made = quantize(arrays[name].T if transposed else arrays[name], scheme)
        meant[name] = dequantize(made)
        held[name].replace_all_uses_with(dequantized(graph, held[name], made, transposed))
    return ir.Model(graph, ir_version=11), meant | {"bias": arrays["bias"]}


def computed(model: ir.Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    model.graph.sort()
    content = ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, feeds)


@pytest.mark.parametrize("bits", [4, 8])
def test_products_and_tables_read_codes_with_zero_points(bits: int) -> None:
    model, meant = graph_of(bits)
    lower_zero_points(model)
    kinds = sorted(node.op_type for node in model.graph)
    assert kinds == ["GatherBlockQuantized", "MatMulNBits", "MatMulNBits"]
    feeds = {"ids": np.array([3, 49, 0, 3]), "x": GENERATOR.standard_normal((4, 80)).astype(np.float32)}
    rows, logits, product = computed(model, feeds)
    assert np.array_equal(rows, meant["table"][feeds["ids"]])
    for found, wanted in (
        (logits, rows @ meant["table"].T + meant["bias"]),
        (product, feeds["x"] @ meant["up"].T),
    ):
        # Rows are rounded to int8 by blocks; a zero point that is off by one moves a result by much more.
        assert np.abs(found - wanted).max() < 0.01 * np.abs(wanted).max()


def test_weights_without_zero_points_are_left_alone() -> None:
    model, _ = graph_of(4, symmetric=True)
    lower_zero_points(model)
    assert not any(node.domain for node in model.graph)


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx"])
def test_targets_without_zero_points_refuse_them_with_the_reason(target: str) -> None:
    with pytest.raises(BadInput, match=r"does not take precision 'int4-asymmetric': .* zero point"):
        policy_of(target, "int4-asymmetric")
    with pytest.raises(BadInput, match=r"takes no asymmetric weights .* no zero point other than 0"):
        POLICIES[target].adapted(layer_schemes("int4-asymmetric", 32))
