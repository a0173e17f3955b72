"""A recipe that rotates: the float graph stays, its weights do not, and algorithms build on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from calibration.activations import GraphRun
from calibration.algorithms import awq
from calibration.batches import Batches
from pipeline import BuildResult, Recipe, build
from pipeline.fuse.weights import read_origin
from pipeline.graph import load_graph
from pipeline.quantize.policy import POLICIES
from pipeline.recipe import CalibrateRecipe, FuseRecipe, QuantizeRecipe
from pipeline.steps.context import BuildContext
from pipeline.workspace import FUSED, QUANTIZED, RECIPE, Workspace

from .tiny import VOCABULARY

LAYER = (
    "input_layernorm", "post_attention_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
    "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip
PARAMETERS = {
    "model.embed_tokens.weight",
    "model.norm.weight",
    *(f"model.layers.{layer}.{name}.weight" for layer in range(2) for name in LAYER),
}
FACTORED = {name for name in PARAMETERS if "layers" in name and "o_proj" not in name}
"""AWQ's factors go from a norm to the layers behind it, and from the up projection to the down projection."""


def logits(folder: Path) -> list[np.ndarray]:
    """Of some sequences, in float32."""
    recipe = Recipe.load(folder / RECIPE)
    facts = BuildContext(recipe, Workspace(folder), exports=False).facts
    draw = np.random.default_rng(1)
    sequences = [draw.integers(2, VOCABULARY, length).tolist() for length in (3, 17, 40)]
    run = GraphRun(folder / FUSED, ["logits"])
    return [run(batch.feeds)["logits"] for batch in Batches(facts, sequences)]


def folded(model: ir.Model, what: str) -> set[str]:
    """Parameters into which `what` was computed."""
    return {
        origin.parameter
        for value in model.graph.initializers.values()
        for origin in read_origin(value)
        if what in origin.folded
    }


def table(model: ir.Model) -> np.ndarray:
    """Of embeddings."""
    (found,) = (
        node.inputs[0]
        for node in model.graph
        if node.op_type == "Gather" and node.inputs[1] is not None and node.inputs[1].name == "input_ids"
    )
    assert found is not None
    assert found.const_value is not None
    return found.const_value.numpy()


def test_a_rotated_graph_gives_the_float_models_logits_and_its_algorithms_say_what_they_folded(
    built: Path, real_build: BuildResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(awq, "ALPHAS", (0.5,))  # factors, whether or not they help
    monkeypatch.setitem(POLICIES, "onnxruntime", replace(POLICIES["onnxruntime"], smallest=1))
    for algorithm in ("gptq", "awq"):
        recipe = Recipe(
            Recipe.load(built / RECIPE).source,
            fuse=FuseRecipe(rotate=True),
            calibrate=CalibrateRecipe(samples=20),
            quantize=QuantizeRecipe("int8", algorithm=algorithm),
        )
        for row in build(recipe, built, stages=("fuse", "quantize")).rows:
            assert not isinstance(row.parity, str)
            assert row.parity["min_cosine"] > (0.99999 if row.stage == "fuse" else 0.9)
        graph = load_graph(built / QUANTIZED)
        assert folded(graph, "rotation") == PARAMETERS
        factored = folded(graph, "awq factors")
        assert factored == (FACTORED if algorithm == "awq" else set())
    for wanted, found in zip(logits(real_build.folder), logits(built), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * float(np.abs(wanted).max()))
    before, after = (table(load_graph(folder / FUSED)) for folder in (real_build.folder, built))
    np.testing.assert_allclose(np.linalg.norm(before, axis=1), np.linalg.norm(after, axis=1), rtol=1e-5)
    assert not np.allclose(before, after)
