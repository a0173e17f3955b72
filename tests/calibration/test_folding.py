"""Factors folded into a graph leave its outputs, judged by ONNX Runtime; what cannot take them is left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from calibration.activations import GraphRun, observable
from calibration.batches import Batches
from calibration.folding import fold_of
from calibration.linear_layers import groups, linear_layers
from pipeline.graph import save_graph
from plugins.cpu.build import registered
from plugins.schemas import DOMAIN

from .layered import Builder, facts, sequences, write_layers

WIDTH, INNER, OUT = 24, 20, 7


def factors(size: int) -> np.ndarray:
    return np.exp(np.random.default_rng(2).standard_normal(size)).astype(np.float32)


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    registered(options)
    options.log_severity_level = 3
    message = ir.serde.serialize_model(model).SerializeToString()
    (y,) = ort.InferenceSession(message, options, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    result: np.ndarray = y
    return result


def model_of(build: Builder, x: ir.Value, y: ir.Value) -> ir.Model:
    y.shape = ir.Shape(["rows", OUT])
    opsets = {"": 23, DOMAIN: 1}
    graph = ir.Graph([x], [y], nodes=build.nodes, initializers=build.weights, opset_imports=opsets)
    return ir.Model(graph, ir_version=10)


def rows() -> ir.Value:
    return ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["rows", WIDTH]))


NORMS = ["RMSNormalization", "LayerNormalization", "SkipRMSNormalization", "SkipLayerNormalization"]


@pytest.mark.parametrize("kind", NORMS)
def test_a_norm_takes_factors_into_gain_and_bias(kind: str) -> None:
    build, x = Builder(0), rows()
    weights = [build.weight("gain", WIDTH, around=1.0, size=0.2)]
    if "Layer" in kind:
        weights.append(build.weight("bias", WIDTH, size=1.0))
    inputs = [x, x, *weights] if "Skip" in kind else [x, *weights]
    (normed,) = build.node(kind, inputs, "normed", domain=DOMAIN if "Skip" in kind else "")
    (one,) = build.node("MatMul", [normed, build.weight("one", WIDTH, OUT)], "one.out")
    (two,) = build.node(
        "Gemm", [normed, build.weight("two", OUT, WIDTH), build.weight("c", OUT)], "two.out", transB=1
    )
    (y,) = build.node("Add", [one, two], "y")
    model = model_of(build, x, y)
    inputs_x = np.random.default_rng(1).standard_normal((30, WIDTH)).astype(np.float32)
    before = run(model, inputs_x)
    fold = fold_of(model, linear_layers(model))
    assert fold is not None
    changed = fold.apply(factors(WIDTH))
    assert set(changed) == {"one", "two", *(weight.name for weight in weights)}
    np.testing.assert_allclose(run(model, inputs_x), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["SwiGLU", "GeGLU"])
def test_a_gated_activation_takes_them_into_its_linear_half(kind: str, bias: bool) -> None:
    build, x = Builder(0), rows()
    if bias:
        inputs = [x, build.weight("both", 2 * INNER, WIDTH), build.weight("c", 2 * INNER)]
        (both,) = build.node("Gemm", inputs, "both.out", transB=1)
    else:
        (both,) = build.node("MatMul", [x, build.weight("both", WIDTH, 2 * INNER)], "both.out")
    (gated,) = build.node(kind, [both], "gated", domain=DOMAIN)
    (y,) = build.node("MatMul", [gated, build.weight("down", INNER, OUT)], "y")
    model = model_of(build, x, y)
    inputs_x = np.random.default_rng(1).standard_normal((30, WIDTH)).astype(np.float32)
    before = run(model, inputs_x)
    fold = fold_of(model, linear_layers(model)[1:])
    assert fold is not None
    assert set(fold.apply(factors(INNER))) == {"both", "down", *(["c"] if bias else [])}
    np.testing.assert_allclose(run(model, inputs_x), before, rtol=1e-5, atol=1e-5)


def test_a_whole_decoder_is_what_it_was(tmp_path: Path) -> None:
    graph = write_layers(tmp_path, 2)
    model = observable(graph)
    folded = 0
    for group in groups(linear_layers(model)):
        fold = fold_of(model, group)
        folded += fold is not None
        if fold is not None:
            fold.apply(factors(group[0].read().shape[1]))
    assert folded == 6  # not the attention's output projection, nor the head, which is behind a Gather
    other = save_graph(model, tmp_path / "folded.onnx").graph
    for batch, again in zip(_batches(), _batches(), strict=True):
        wanted = GraphRun(graph, ["logits"])(batch.feeds)["logits"]
        np.testing.assert_allclose(
            GraphRun(other, ["logits"])(again.feeds)["logits"], wanted, rtol=1e-4, atol=1e-4
        )


def _batches() -> Batches:
    return Batches(facts(2), sequences(4))


@pytest.mark.parametrize(
    "case", ["another reader", "an output", "a shared gain", "a shared weight", "no norm", "an axis"]
)
def test_what_others_read_takes_no_factors(case: str) -> None:
    build, x = Builder(0), rows()
    gain = build.weight("gain", WIDTH, around=1.0, size=0.2)
    kind = "Relu" if case == "no norm" else "LayerNormalization"
    given = [x] if case == "no norm" else [x, gain]
    (normed,) = build.node(kind, given, "normed", **({"axis": 0} if case == "an axis" else {}))
    (y,) = build.node("MatMul", [normed, build.weight("one", WIDTH, OUT)], "y")
    if case == "another reader":
        build.node("Relu", [normed], "other")
    if case == "a shared gain":
        build.node("Mul", [x, gain], "other")
    if case == "a shared weight":
        build.node("MatMul", [x, build.weights[1]], "other")
    model = model_of(build, x, y)
    if case == "an output":
        model.graph.outputs.append(normed)
    assert fold_of(model, [layer for layer in linear_layers(model) if layer.inputs is normed]) is None
