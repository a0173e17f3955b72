"""Real builds by TensorRT-RTX's own parser and builder, which need no GPU, and what they made of the graph."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes import common as ir_passes

from model_repo.runtime.errors import BadInput, SlipwayError
from pipeline.export.decoder import export_decoder
from pipeline.fuse import fuse
from pipeline.graph import load_graph, save_graph
from pipeline.recipe import FuseRecipe
from pipeline.targets.native.linear import lower_to_linear
from pipeline.targets.native.precision import narrow
from pipeline.targets.tensorrt import bindings
from pipeline.targets.tensorrt.attention import check_attention
from pipeline.targets.tensorrt.audit import check_types, mixed_types
from pipeline.targets.tensorrt.builder import BuildOptions, Built, build_engine
from pipeline.targets.tensorrt.layers import EngineLayers, parse_layers, report
from pipeline.targets.tensorrt.limits import check_sizes
from pipeline.targets.tensorrt.profiles import Profile, Sizes, linear_profiles, profile
from pipeline.targets.tensorrt.record import build_record, check_ends
from tests.export.tiny_models import VOCABULARY, greedy, tiny_llama
from tests.fuse.graphs import graph
from tests.targets.linear_requests import greedy_in_slots

RTX = "tensorrt-rtx"
MAX_LENGTH = 64
MAX_BATCH, BUDGET = 8, 32
LAYERS, KV_HEADS, HEAD_DIM = 2, 2, 64
PROFILES = ("decode", "prefill")


class Compiled(NamedTuple):
    """A tiny Llama down the linear road to a real engine."""

    model: ir.Model
    profiles: tuple[Profile, ...]
    built: Built
    engine: Path
    layers: EngineLayers


def model() -> Any:
    return tiny_llama(head_dim=HEAD_DIM, num_key_value_heads=KV_HEADS, num_hidden_layers=LAYERS)


def inputs(linear: ir.Model) -> dict[str, tuple[int | str, ...]]:
    return {
        value.name or "": tuple(
            size if isinstance(size, int) else str(size.value) for size in value.shape or ()
        )
        for value in linear.graph.inputs
    }


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    folder = tmp_path_factory.mktemp("rtx")
    linear = export_decoder(model(), MAX_LENGTH, 24).model
    fuse(linear, FuseRecipe(), max_length=MAX_LENGTH)
    lower_to_linear(linear, MAX_LENGTH)
    narrow(linear, "fp16")
    check_types(linear)
    path = save_graph(linear, folder / "linear.onnx").graph
    profiles = linear_profiles(inputs(linear), MAX_BATCH, BUDGET)
    options = BuildOptions(compute_capabilities=("8.9", "12.0"))
    built = build_engine(RTX, path, folder / "model.rtx", profiles, options)
    return Compiled(load_graph(path), profiles, built, folder / "model.rtx", parse_layers(built.layers))


def test_the_engine_is_there_and_as_large_as_it_says(compiled: Compiled) -> None:
    assert compiled.engine.stat().st_size == compiled.built.bytes > 100_000
    assert not list(compiled.engine.parent.glob("*.part"))


def test_its_inputs_and_outputs_are_the_contracts(compiled: Compiled) -> None:
    cache = ("Half", (-1, KV_HEADS, MAX_LENGTH, HEAD_DIM))
    names = [f"{kind}_cache_{layer}" for layer in range(LAYERS) for kind in ("key", "value")]
    found = {name: (end.dtype, end.shape) for name, end in compiled.layers.inputs.items()}
    assert found == {
        "input_ids": ("Int32", (-1, -1)),
        "past_lens": ("Int32", (-1,)),
        "logits_indices": ("Int32", (-1,)),
        **dict.fromkeys(names, cache),
    }
    found = {name: (end.dtype, end.shape) for name, end in compiled.layers.outputs.items()}
    outs = [name.replace("cache_", "cache_out_") for name in names]
    assert found == {"logits": ("Float", (-1, VOCABULARY)), **dict.fromkeys(outs, cache)}


def test_each_attention_is_one_kernel_and_each_norm_whole(compiled: Compiled) -> None:
    check_kernels(compiled.model, compiled.layers)


def test_so_it_is_in_an_engine_for_any_gpu(compiled: Compiled, tmp_path: Path) -> None:
    graph = compiled.engine.with_name("linear.onnx")
    built = build_engine(RTX, graph, tmp_path / "model.rtx", compiled.profiles, BuildOptions())
    check_kernels(compiled.model, parse_layers(built.layers))


def check_kernels(model: ir.Model, layers: EngineLayers) -> None:
    """What the builder made of the graph is within the limits."""
    operators = {node.name or "": node.op_type for node in model.graph}
    made = report(layers, operators, ("Attention", "RMSNormalization", "TensorScatter"), PROFILES)
    fates = {(fate.operator, fate.profile): fate for fate in made.fates}
    for name in PROFILES:
        attention = fates["Attention", name]
        assert attention.nodes == attention.own == LAYERS
        # Both cache updates of a layer, the rotation and the transposes are one kernel.
        assert fates["TensorScatter", name].kernels == LAYERS
    # Behind the last one the wanted rows are chosen.
    assert fates["Attention", "decode"].kernels <= LAYERS + 1
    # A prefill copies keys and values for all query heads of a group first: limits, so that more is noticed.
    assert fates["Attention", "prefill"].kernels <= 5 * LAYERS
    assert fates["RMSNormalization", "decode"].whole == 2 * LAYERS + 1
    # Of the one row that a prefill wants the builder computes the mean squares apart.
    assert fates["RMSNormalization", "prefill"].kernels <= 2 * LAYERS + 1 + 2
    assert made.reformats == ()
    assert made.kernels["decode"] <= 9 * LAYERS + 5
    assert made.kernels["prefill"] <= 12 * LAYERS + 5
    assert made.float_islands == ()


def test_its_graph_gives_the_float32_models_tokens(compiled: Compiled) -> None:
    """fp16 in onnx's reference evaluator, caches included."""
    fresh = compiled.model.clone()
    ir.external_data.load_to_model(fresh)
    evaluator = ReferenceEvaluator(ir.to_proto(fresh))
    prompts = [[7, 60, 3], [int(token) for token in np.random.default_rng(1).integers(4, VOCABULARY, 11)]]
    found = greedy_in_slots(
        fresh,
        lambda feed: dict(zip(evaluator.output_names, evaluator.run(None, feed), strict=True)),
        prompts,
        8,
    )
    assert found == [greedy(model(), prompt, 8)[0] for prompt in prompts]


def test_what_the_parser_refuses_is_named(tmp_path: Path) -> None:
    bad = graph("g (float[2, 8] x) => (float[2, 8] y) { [odd] y = slipway.Nothing (x) }")
    path = save_graph(bad, tmp_path / "bad.onnx").graph
    with pytest.raises(BadInput, match=r"refuses 1 nodes of bad.onnx: Nothing"):
        build_engine(RTX, path, tmp_path / "bad.rtx", [], BuildOptions(("8.9",)))
    assert not (tmp_path / "bad.rtx").exists()


def test_a_capability_that_it_has_not_is_refused(compiled: Compiled, tmp_path: Path) -> None:
    path = compiled.engine.parent / "linear.onnx"
    with pytest.raises(BadInput, match=r"compute capability '9.0' .* it has 7.5, 8.0, 8.6, 8.9, 12.0, 12.1"):
        build_engine(RTX, path, tmp_path / "h100.rtx", compiled.profiles, BuildOptions(("9.0",)))


def test_a_profile_without_an_input_is_refused(compiled: Compiled, tmp_path: Path) -> None:
    shapes = {name: shape for name, shape in compiled.profiles[0].shapes.items() if name != "past_lens"}
    lacking = dataclasses.replace(compiled.profiles[0], shapes=shapes)
    path = compiled.engine.parent / "linear.onnx"
    with pytest.raises(BadInput, match="profile 'decode' names no shape of input 'past_lens'"):
        build_engine(RTX, path, tmp_path / "x.rtx", [lacking], BuildOptions(("8.9",)))


def test_a_profile_that_does_not_fit_the_input_is_refused(tmp_path: Path) -> None:
    path = save_graph(
        graph("g (float[n, 8] x) => (float[n, 8] y) { y = Relu (x) }"), tmp_path / "x.onnx"
    ).graph
    wide = profile("any", {"x": ("n", 9)}, {"n": Sizes(1, 2, 3)})
    with pytest.raises(
        BadInput, match=r"profile 'any' gives input 'x' the shapes \[1, 9\] to .* is \[-1, 8\]"
    ):
        build_engine(RTX, path, tmp_path / "x.rtx", [wide], BuildOptions(("8.9",)))
    turned = profile("any", {"x": ("n", 8)}, {"n": Sizes(3, 2, 3)})
    with pytest.raises(BadInput, match=r"the shapes \[3, 8\] to \[3, 8\], usually \[2, 8\]"):
        build_engine(RTX, path, tmp_path / "x.rtx", [turned], BuildOptions(("8.9",)))


def test_a_tensor_that_is_too_large_is_named_before_the_builder_is_called() -> None:
    large = graph(
        "g (float[n, 64] x, int64[2] r) => (float[n, 4096] y) { t = Tile (x, r)  y = Relu (t) }",
        r=np.array([1, 64]),
    )
    ir_passes.ShapeInferencePass()(large)
    shapes = {"x": ("n", 64)}
    check_sizes(large, [profile("any", shapes, {"n": Sizes(1, 1, 2**19 - 1)})])
    words = r"shape \[524288, 4096\] in profile 'any' has 2147483648 elements; .* at most 2147483647"
    with pytest.raises(BadInput, match=words):
        check_sizes(large, [profile("any", shapes, {"n": Sizes(1, 1, 2**19)})])


def test_what_a_report_in_another_form_leaves_unknown() -> None:
    model = graph("g (float[n, 8] x) => (float[n, 8] y) { y = Relu (x) }")
    built = Built(8, 0.1, "11.4", '{"Layers": []}')
    kept = build_record("tensorrt", model, [], BuildOptions(), built)
    assert (kept["inputs"], kept["layers"], kept["bytes"]) == ([], [], 8)
    with pytest.raises(SlipwayError, match="another form than expected"):
        build_record(RTX, model, [], BuildOptions(), built)


def test_an_engine_with_other_inputs_than_the_graphs_is_found(compiled: Compiled) -> None:
    other = compiled.model.clone()
    check_ends(other, compiled.layers)
    other.graph.inputs[1].shape = ir.Shape((3,))
    other.graph.outputs[0].name = "logit"
    words = r"'past_lens' is Int32 \[-1\] and should be Int32 \[3\]; output 'logit' is gone; output 'logits' is there"
    with pytest.raises(SlipwayError, match=words):
        check_ends(other, compiled.layers)


CAUSAL = """g (float[1, 2, {}, 8] q, float[1, 2, {}, 8] k) => (float[1, 2, {}, 8] y)
{{ y = Attention <is_causal = 1> (q, k, k) }}"""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (CAUSAL.format("n", "m", "n"), "causal with queries of length n and keys of length m"),
        (
            "g (float[1, 2, n, 8] q, int64[1] s) => (float[1, 2, n, 8] y) { y = Attention (q, q, q, , , , s) }",
            "has nonpad_kv_seqlen, which TensorRT ignores",
        ),
    ],
)
def test_attention_that_would_be_computed_otherwise_is_refused(text: str, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        check_attention(graph(text))
    check_attention(graph(CAUSAL.format("n", "n", "n")))


def test_a_missing_package_says_what_to_install() -> None:
    with pytest.raises(
        BadInput, match=r"needs TensorRT, whose Python package tensorrt does not load .* pip install tensorrt"
    ):
        bindings.load("tensorrt")


def test_another_major_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    older = dataclasses.replace(bindings.PACKAGES[RTX], major=9)
    monkeypatch.setattr(bindings, "PACKAGES", {RTX: older})
    with pytest.raises(
        BadInput, match=r"TensorRT-RTX 1.* is installed; target 'tensorrt-rtx' is written for version 9"
    ):
        bindings.load(RTX)


def test_profiles_come_from_the_limits() -> None:
    dims = {
        "input_ids": ("batch", "length"),
        "logits_indices": ("selected",),
        "key_cache_0": ("batch", 2, 64, 16),
    }
    decode, prefill = linear_profiles(dims, max_batch=8, token_budget=32)
    assert decode.shapes["input_ids"] == ((1, 1), (8, 1), (8, 1))
    assert decode.shapes["key_cache_0"] == ((1, 2, 64, 16), (8, 2, 64, 16), (8, 2, 64, 16))
    assert prefill.shapes["input_ids"] == ((1, 1), (1, 32), (1, 32))
    assert prefill.shapes["logits_indices"] == ((1,), (1,), (1,))
    with pytest.raises(BadInput, match="input 'x' has the size 'width'"):
        linear_profiles({"x": ("width",)}, 8, 32)


def test_mixed_types_are_found_before_the_builder_is_called() -> None:
    mixed = _mixed()
    (found,) = mixed_types(mixed)
    assert found.node == "bad"
    assert dict(found.types) == {"x": "float", "z": "float16"}
    with pytest.raises(BadInput, match=r"1 nodes read mixed types.*Add 'bad': x is float, z is float16"):
        check_types(mixed)


def _mixed() -> ir.Model:
    """A graph that onnx's own checker would refuse."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([2]))
    z = ir.Value(name="z", type=ir.TensorType(ir.DataType.FLOAT16), shape=ir.Shape([2]))
    fine = ir.node("Mul", [x, x], name="fine")
    bad = ir.node("Add", [x, z], name="bad")
    inner = ir.Graph([x, z], [bad.outputs[0]], nodes=[fine, bad], opset_imports={"": 24})
    return ir.Model(inner, ir_version=13)


def test_what_the_standard_lets_differ_is_no_mix() -> None:
    model = graph(
        "g (float[2, 8] x, int64[3] i) => (float[3, 8] y) { y = Gather <axis = 0> (x, i) }",
        i=np.array([0, 1, 0]),
    )
    assert mixed_types(model) == []
