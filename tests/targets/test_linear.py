"""The linear contract: native attention over slots gives transformers' own greedy tokens, before a GPU ever sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator

from model_repo.runtime.errors import BadInput
from pipeline.export.decoder import export_decoder
from pipeline.fuse import fuse
from pipeline.fuse.matching import dims
from pipeline.graph import load_graph, save_graph
from pipeline.recipe import FuseRecipe
from pipeline.targets.native.linear import lower_to_linear
from pipeline.targets.native.standard import write_out
from tests.export.families import CARRIED, Family
from tests.export.tiny_models import VOCABULARY, greedy, tiny_llama
from tests.fuse.graphs import assert_same, graph, operators, random, run
from tests.plugins.attention_case import Shape, make_step, node_model
from tests.targets.linear_requests import Run, greedy_in_slots

MAX_LENGTH = 48
NEW_TOKENS = 12
PROMPTS = [
    [int(token) for token in np.random.default_rng(5).integers(4, VOCABULARY, length)]
    for length in (1, 9, 23, 2, 14)
]
ALWAYS = ("Mistral", "GPT-2", "Cohere 2")
"""Windows, learned positions, interleaved rotary and parallel layers."""
WIDE = ("Phi", "GLM-4", "Qwen3", "Gemma 3 text", "StarCoder 2", "OLMo 2", "SmolLM3")


def lowered(model: object, folder: Path) -> ir.Model:
    """The model's linear graph, written to `folder` and read back."""
    exported = export_decoder(model, MAX_LENGTH, 24).model  # type: ignore[arg-type]
    save_graph(exported, folder / "export.onnx")
    fused = load_graph(folder / "export.onnx")
    fuse(fused, FuseRecipe(), max_length=MAX_LENGTH)
    lower_to_linear(fused, MAX_LENGTH)
    fused.ir_version = 13  # the newest that ONNX Runtime reads
    save_graph(fused, folder / "linear.onnx")
    return load_graph(folder / "linear.onnx")


def on_onnxruntime(folder: Path) -> Run:
    """ONNX Runtime's own kernels, without any operator of ours."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(folder / "linear.onnx", options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return lambda feed: dict(zip(names, session.run(None, feed), strict=True))


def on_reference(model: ir.Model) -> Run:
    """onnx's reference evaluator."""
    ir.external_data.load_to_model(model)
    evaluator = ReferenceEvaluator(ir.to_proto(model))
    return lambda feed: dict(zip(evaluator.output_names, evaluator.run(None, feed), strict=True))


def families() -> list[Any]:
    """Families as parameters; those in WIDE only where the wide sweep runs."""
    named = {family.name: family for family in CARRIED}
    return [
        *(pytest.param(named[name], id=name) for name in ALWAYS),
        *(pytest.param(named[name], id=name, marks=pytest.mark.wide) for name in WIDE),
    ]


@pytest.mark.parametrize("family", families())
def test_it_decodes_as_transformers(family: Family, tmp_path: Path) -> None:
    expected = [greedy(family.model(), prompt, NEW_TOKENS)[0] for prompt in PROMPTS]
    model = lowered(family.model(), tmp_path)
    assert all(node.domain == "" for node in model.graph)
    assert greedy_in_slots(model, on_onnxruntime(tmp_path), PROMPTS, NEW_TOKENS) == expected
    assert len({token for made in expected for token in made}) > 10


def test_it_decodes_as_transformers_in_the_reference_evaluator(tmp_path: Path) -> None:
    expected = [greedy(tiny_llama(), prompt, NEW_TOKENS)[0] for prompt in PROMPTS]
    model = lowered(tiny_llama(), tmp_path)
    assert greedy_in_slots(model, on_reference(model), PROMPTS, NEW_TOKENS) == expected


def test_a_layer_is_one_attention_two_cache_updates_and_four_products(tmp_path: Path) -> None:
    found = operators(lowered(tiny_llama(), tmp_path))
    assert found["Attention"] == 2
    assert found["TensorScatter"] == found["RotaryEmbedding"] == 4
    assert found["RMSNormalization"] == 5
    assert found["MatMul"] + found["Gemm"] == 4 * 2 + 1
    assert found["Range"] == found["LessOrEqual"] == 1


def test_what_follows_the_last_attention_sees_only_the_rows_that_are_wanted(tmp_path: Path) -> None:
    model = lowered(tiny_llama(), tmp_path)
    after = list(model.graph)[[node.op_type for node in model.graph].index("Attention") :]
    last = after[[node.op_type for node in after].index("Attention", 1) :]
    chosen = [node.op_type for node in last if (dims(node.outputs[0]) or ("",))[0] == "selected"]
    # The attention's result and the residual are chosen from; then output product, norm, feed-forward, norm, head.
    assert chosen.count("Gather") == 2
    assert chosen.count("MatMul") + chosen.count("Gemm") == 4
    assert chosen.count("RMSNormalization") == 2


@pytest.mark.parametrize(("name", "words"), [("Gemma 2", "softcap"), ("GPT-OSS", "attention sinks")])
def test_what_native_attention_lacks_is_refused_by_name(name: str, words: str, tmp_path: Path) -> None:
    (family,) = (family for family in CARRIED if family.name == name)
    with pytest.raises(BadInput, match=f"uses {words}, which the native attention"):
        lowered(family.model(), tmp_path)


@pytest.mark.parametrize(
    ("shape", "words"), [(Shape(alibi=True), "ALiBi"), (Shape(distances=3), "a bias by distance")]
)
def test_biases_of_the_scores_are_refused_by_name(shape: Shape, words: str) -> None:
    node = ir.from_proto(node_model(shape, frozenset(make_step(shape, [(0, 3)]).inputs), outputs=3))
    with pytest.raises(BadInput, match=f"uses {words}, which the native attention"):
        lower_to_linear(node, MAX_LENGTH)


def test_experts_are_refused_by_name(tmp_path: Path) -> None:
    (family,) = (family for family in CARRIED if family.name == "Mixtral")
    with pytest.raises(BadInput, match=r"slipway::ExpertLinear .* no operator for"):
        lowered(family.model(), tmp_path)


WRITTEN = {
    "SkipRMSNormalization": (
        """g (float[3, 8] x, float[3, 8] s, float[8] w) => (float[3, 8] y, float[3, 8] t)
        { y, t = slipway.SkipRMSNormalization <epsilon = 0.02> (x, s, w) }""",
        {"w": random(8)},
        {"x": random(3, 8), "s": random(3, 8)},
    ),
    "SkipLayerNormalization": (
        """g (float[3, 8] x, float[8] s, float[8] w, float[8] b, float[8] c) => (float[3, 8] y, float[3, 8] t)
        { y, t = slipway.SkipLayerNormalization <epsilon = 0.02> (x, s, w, b, c) }""",
        {"w": random(8), "b": random(8), "c": random(8)},
        {"x": random(3, 8), "s": random(8)},
    ),
    "SkipLayerNormalization without biases": (
        """g (float[3, 8] x, float[3, 8] s, float[8] w) => (float[3, 8] y)
        { y = slipway.SkipLayerNormalization <epsilon = 0.02> (x, s, w) }""",
        {"w": random(8)},
        {"x": random(3, 8), "s": random(3, 8)},
    ),
    "EmbedLayerNormalization": (
        """g (int64[2, 3] i, int64[2, 3] j, int64[3] k, float[9, 8] t, float[4, 8] u, float[5, 8] v, float[8] w,
        float[8] b) => (float[2, 3, 8] y, float[2, 3, 8] s)
        { y, s = slipway.EmbedLayerNormalization <epsilon = 0.02> (i, t, j, u, w, b, k, v) }""",
        {
            "t": random(9, 8),
            "u": random(4, 8, seed=1),
            "v": random(5, 8, seed=2),
            "w": random(8),
            "b": random(8),
        },
        {
            "i": np.array([[0, 8, 3], [1, 1, -1]]),
            "j": np.array([[3, 0, 1], [2, 2, 0]]),
            "k": np.array([4, 0, 2]),
        },
    ),
    "BiasGelu": (
        "g (float[3, 8] x, float[8] b) => (float[3, 8] y) { y = slipway.BiasGelu <tanh = 0> (x, b) }",
        {"b": random(8)},
        {"x": random(3, 8)},
    ),
    "BiasGelu by tanh": (
        "g (float[3, 8] x, float[8] b) => (float[3, 8] y) { y = slipway.BiasGelu <tanh = 1> (x, b) }",
        {"b": random(8)},
        {"x": random(3, 8)},
    ),
    "GeGLU": (
        "g (float[3, 8] x) => (float[3, 4] y) { y = slipway.GeGLU <tanh = 1> (x) }",
        {},
        {"x": random(3, 8)},
    ),
    "SwiGLU": (
        "g (float[3, 8] x) => (float[3, 4] y) { y = slipway.SwiGLU (x) }",
        {},
        {"x": random(3, 8)},
    ),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_an_operator_of_ours_is_written_out_in_standard_ones(name: str) -> None:
    text, weights, inputs = WRITTEN[name]
    model = graph(text, **weights)
    before = run(model, **inputs)
    write_out(model, keep=frozenset())
    assert all(node.domain == "" for node in model.graph)
    assert "slipway" not in model.opset_imports
    assert_same(before, run(model, **inputs))
