"""A rotated graph gives the logits that it gave; what cannot be rotated is refused and left as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from calibration.activations import GraphRun, observable
from calibration.batches import Batches
from calibration.linear_layers import linear_layers
from calibration.rotating import rotate
from model_repo.runtime.errors import BadInput
from pipeline.graph import save_graph

from .layered import CAUSES, WIDTH, Builder, facts, sequences, write_layers

LAYERS = 2


def logits(graph: Path, *more: str) -> list[dict[str, np.ndarray]]:
    run = GraphRun(graph, ["logits", *more])
    return [run(batch.feeds) for batch in Batches(facts(LAYERS), sequences(5), tokens=96)]


def tie(model: ir.Model) -> None:
    """The head reads the embedding's table."""
    head = next(layer for layer in linear_layers(model) if layer.name == "head")
    head.node.replace_input_with(1, model.graph.initializers["embedding"])
    del model.graph.initializers["head"]


@pytest.mark.parametrize("tied", [False, True])
def test_the_logits_stay_and_the_streams_outliers_go(tmp_path: Path, tied: bool) -> None:
    graph = write_layers(tmp_path, LAYERS)
    model = observable(graph)
    if tied:
        tie(model)
    embedding = model.graph.initializers["embedding"]
    outlier = embedding.const_value.numpy().copy()
    outlier[:, 5] *= 40
    embedding.const_value = ir.tensor(outlier, name="embedding")
    before = save_graph(model, tmp_path / "before.onnx").graph
    assert len(rotate(model, seed=1)) == 1 + 4 * LAYERS + 1 + 2 * LAYERS + 1
    after = save_graph(model, tmp_path / "after.onnx").graph
    for wanted, found in zip(logits(before, "0.second.sum"), logits(after, "0.second.sum"), strict=True):
        small = 1e-5 * float(np.abs(wanted["logits"]).max())
        np.testing.assert_allclose(found["logits"], wanted["logits"], rtol=1e-5, atol=small)
        peaks = [
            np.abs(run["0.second.sum"]).max(axis=1) / run["0.second.sum"].std(axis=1)
            for run in (wanted, found)
        ]
        assert np.median(peaks[1]) < 0.75 * np.median(peaks[0])
        norms = [np.linalg.norm(run["0.second.sum"], axis=1) for run in (wanted, found)]
        np.testing.assert_allclose(norms[0], norms[1], rtol=1e-4)
    weights = observable(after).graph.initializers
    assert all((weights[name].const_value.numpy() == 1).all() for name in weights if name.endswith(".gain"))
    assert ("embedding.head" in weights) == tied
    assert CAUSES < WIDTH


def test_a_bias_of_what_writes_the_stream_is_turned_too(tmp_path: Path) -> None:
    graph = write_layers(tmp_path, LAYERS)
    model = observable(graph)
    out = next(layer for layer in linear_layers(model) if layer.name == "1.out")
    build = Builder(9)
    bias = build.weight("bias", WIDTH, size=1.0)
    model.graph.register_initializer(bias)
    gemm = ir.node("Gemm", [out.inputs, out.weight, bias], outputs=[ir.Value(name="biased", type=bias.type)])
    model.graph.insert_before(out.node, gemm)
    out.node.outputs[0].replace_all_uses_with(gemm.outputs[0])
    model.graph.remove(out.node, safe=True)
    before = save_graph(model, tmp_path / "before.onnx").graph
    assert "bias" in rotate(model)
    after = save_graph(model, tmp_path / "after.onnx").graph
    for wanted, found in zip(logits(before), logits(after), strict=True):
        small = 1e-5 * float(np.abs(wanted["logits"]).max())
        np.testing.assert_allclose(found["logits"], wanted["logits"], rtol=1e-5, atol=small)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("layer norm", "LayerNormalization"),
        ("relu", "Relu"),
        ("shared gain", "the gain of"),
        ("shared weight", "which several nodes share"),
        ("output", "the output '0.second.sum'"),
        ("no table", "no table of embeddings"),
    ],
)
def test_what_no_rotation_goes_through_is_refused_and_left(tmp_path: Path, case: str, message: str) -> None:
    model = observable(write_layers(tmp_path, LAYERS))
    nodes = {node.outputs[0].name: node for node in model.graph}
    weights = model.graph.initializers
    if case == "layer norm":
        nodes["0.first.normed"].op_type = "LayerNormalization"
    elif case == "relu":
        model.graph.append(ir.node("Relu", [nodes["0.second.normed"].outputs[1]]))
    elif case == "shared gain":
        nodes["1.first.normed"].replace_input_with(2, weights["0.second.gain"])
    elif case == "shared weight":
        nodes["1.packed"].replace_input_with(1, weights["0.qkv"])
    elif case == "output":
        model.graph.outputs.append(nodes["0.second.normed"].outputs[1])
    else:
        nodes["embedded"].op_type = "GatherElements"
    before = {name: value.const_value for name, value in weights.items()}
    with pytest.raises(BadInput, match=message):
        rotate(model)
    assert all(value.const_value is before[name] for name, value in weights.items())
