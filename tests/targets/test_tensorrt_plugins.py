"""Plugins that a recipe asks for: FlashAttention in encoders and whole batches, Int4Gemm for int4 weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from onnx_ir.passes import common as passes

from model_repo.runtime.contract import KVSpec
from model_repo.runtime.errors import BadInput
from pipeline import Recipe, build
from pipeline.export.encoder import export_encoder
from pipeline.fuse import fuse
from pipeline.fuse.matching import dims
from pipeline.graph import load_graph, save_graph
from pipeline.parity.plugin_products import products_for_plugins
from pipeline.parity.sessions import graph_session
from pipeline.recipe import FuseRecipe
from pipeline.targets import Lowering, get_target
from pipeline.targets.tensorrt.builder import BuildOptions, build_engine
from pipeline.targets.tensorrt.layers import parse_layers
from pipeline.targets.tensorrt.plugin_loading import plugin_names
from pipeline.targets.tensorrt.profiles import Sizes, profile
from plugins.cuda import emulated
from plugins.cuda.library import Library
from plugins.tensorrt import names
from tests.export.encoder_families import CARRIED
from tests.export.packed_requests import Schedule, generate
from tests.export.tiny_models import VOCABULARY, saved, tiny_llama
from tests.fuse.graphs import graph, run
from tests.plugins.tensorrt.evaluator import plugin_step

LENGTHS = (6, 1, 17, 11)
Floats = npt.NDArray[np.float32]
FAMILIES: dict[str, dict[str, Any]] = {
    "BERT": {"hidden_size": 64},
    "MPNet": {"hidden_size": 64},
    "ModernBERT": {"hidden_size": 64},
    "Qwen3, causal": {"head_dim": 16},
}
"""Positions learned, by distance (a bias), by rotary embedding with windows; causal, with groups of heads. Their heads
are made as large as the kernel takes them."""

WIDE = ("MPNet", "Qwen3, causal")


@pytest.fixture(scope="module")
def kernels_path() -> Path:
    """All operators in an emulated library."""
    return emulated.Build().library()


def encoder(name: str, **settings: int) -> ir.Model:
    """A tiny encoder of two layers, fused as for a target with packed texts."""
    (family,) = (family for family in CARRIED if family.name == name)
    model = export_encoder(family.model(**settings), family.pooling, True, 64, opset=24).model
    fuse(model, FuseRecipe(), max_length=64)
    return model


def texts(inputs: Any) -> dict[str, npt.NDArray[np.int64]]:
    """A padded batch of LENGTHS."""
    random = np.random.default_rng(5)
    ids = np.full((len(LENGTHS), max(LENGTHS)), 1, np.int64)
    mask = np.zeros_like(ids)
    for row, length in enumerate(LENGTHS):
        ids[row, :length] = random.integers(3, VOCABULARY, length)
        mask[row, :length] = 1
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return {value.name: feeds[value.name] for value in inputs}


def computed(model: ir.Model, folder: Path, feeds: Any = None) -> Floats:
    """The first output, plugins run by the CPU's operators."""
    path = save_graph(model.clone(), folder / "graph.onnx").graph
    with graph_session(path, folder / "scratch.onnx") as session:
        given = texts(session.get_inputs()) if feeds is None else feeds
        result: Floats = session.run(None, given)[0]
    return result


def cosine(wanted: Floats, found: Floats) -> float:
    """The least over rows."""
    lengths = np.linalg.norm(wanted, axis=-1) * np.linalg.norm(found, axis=-1)
    return float(((wanted * found).sum(-1) / lengths).min())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.wide if name in WIDE else ()) for name in FAMILIES]
)
def test_an_encoders_attention_is_the_plugin(name: str, tmp_path: Path) -> None:
    model = encoder(name, **FAMILIES[name])
    wanted = computed(model, tmp_path)
    get_target("tensorrt").lower(model, "encoder", Lowering("fp16", attention="plugin"))
    assert {node.domain for node in model.graph} == {"", names.DOMAIN}
    assert [node.op_type for node in model.graph if node.domain].count(names.FLASH_ATTENTION) == 2
    assert cosine(wanted, computed(model, tmp_path)) > 0.9999


def test_each_attention_of_an_encoder_is_one_plugin_layer(kernels_path: Path, tmp_path: Path) -> None:
    """A real build by TensorRT-RTX, with the Python plugins."""
    model = encoder("BERT", **FAMILIES["BERT"])
    get_target("tensorrt").lower(model, "encoder", Lowering("fp16", attention="plugin"))
    attention = {node.name for node in model.graph if node.domain == names.DOMAIN}
    path = save_graph(model, tmp_path / "graph.onnx").graph
    inputs = {value.name or "": ("batch", "length") for value in model.graph.inputs}
    shapes = profile("any", inputs, {"batch": Sizes(1, 4, 8), "length": Sizes(1, 32, 64)})
    options = BuildOptions(("8.9", "12.0"), kernels=str(kernels_path))
    made = build_engine("tensorrt-rtx", path, tmp_path / "engine.rtx", [shapes], options)
    layers = [layer for layer in parse_layers(made.layers).layers if layer.kind == "custom_layer"]
    assert [len(layer.nodes) for layer in layers] == [1, 1]
    assert {node for layer in layers for node in layer.nodes} == attention


def test_attention_of_whole_batches_without_a_mask_is_the_plugin(tmp_path: Path) -> None:
    text = """g (float[batch, 7, 96] qkv) => (float[batch, 7, 32] y) {
        q, k, v = Split <axis = -1, num_outputs = 3> (qkv)
        y = Attention <q_num_heads = 2, kv_num_heads = 2, scale = 0.3> (q, k, v)
    }"""
    model = graph(text)
    passes.ShapeInferencePass()(model)
    feeds = {"qkv": np.random.default_rng(0).standard_normal((3, 7, 96), np.float32)}
    wanted = next(iter(run(model, **feeds).values()))
    get_target("tensorrt").lower(model, "tensors", Lowering("fp16", attention="plugin"))
    assert plugin_names(model) == {names.FLASH_ATTENTION}
    np.testing.assert_allclose(computed(model, tmp_path, feeds), wanted, rtol=0, atol=5e-3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "g (float[b, 7, 24] x) => (float[b, 7, 24] y) "
            "{ y = Attention <q_num_heads = 2, kv_num_heads = 2> (x, x, x) }",
            "has heads of 12; the plugin FlashAttention takes multiples of 8 up to 256",
        ),
        (
            "g (float[b, 7, 32] x, float[7, 7] m) => (float[b, 7, 32] y) "
            "{ y = Attention <q_num_heads = 2, kv_num_heads = 2> (x, x, x, m) }",
            "holds no attention that the plugin FlashAttention computes",
        ),
    ],
)
def test_attention_that_the_plugin_does_not_compute_is_refused(text: str, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        get_target("tensorrt").lower(graph(text), "tensors", Lowering("fp16", attention="plugin"))


def test_other_targets_take_no_plugins() -> None:
    target = {"name": "tensorrt-rtx", "int4_gemm": "plugin"}
    with pytest.raises(BadInput, match=r"int4_gemm is 'plugin', and target tensorrt-rtx takes no plugins"):
        Recipe.from_dict({"source": {"model": "demo"}, "target": target})


@pytest.fixture(scope="module")
def int4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny decoder down to the lowered graph, its products with int4 weights by the plugin."""
    folder = tmp_path_factory.mktemp("int4")
    checkpoint = saved(tiny_llama(num_hidden_layers=2, num_key_value_heads=2, head_dim=64), folder / "tiny")
    loose = {"min_cosine": -1.0, "min_top1": 0.0}  # a random model
    recipe = {
        "source": {"model": str(checkpoint)},
        "export": {"max_length": 64},
        "quantize": {"precision": "int4"},
        "target": {"name": "tensorrt", "int4_gemm": "plugin"},
        "parity": {"quantize": loose},
    }
    build(Recipe.from_dict(recipe), folder / "build", stages=("export", "fuse", "quantize", "lower"))
    return folder / "build"


def test_products_with_int4_weights_are_the_plugin(int4: Path, kernels_path: Path) -> None:
    """The kernels' sources on the packed bytes give the logits of the standard's operators on the codes."""
    model = load_graph(int4 / "lower.tensorrt.onnx")
    assert plugin_names(model) == {names.PAGED_ATTENTION, names.INT4_GEMM}
    assert [node.op_type for node in model.graph].count(names.INT4_GEMM) == 4 * 2
    (head,) = (node for node in model.graph if node.op_type in ("MatMul", "Gemm"))  # tied to the embedding
    assert dims(head.outputs[0]) == ("selected", VOCABULARY)
    parity = json.loads((int4 / "lower.json").read_text())["parity"]
    assert parity["min_cosine"] > 0.999
    kernels, random = Library(kernels_path), np.random.default_rng(1)
    prompts = [random.integers(4, VOCABULARY, length).tolist() for length in (5, 21, 8)]
    schedule = Schedule(block_size=16, num_blocks=12, join={2: 1})
    kv = [KVSpec(0, 2, 64, 64, 0, "float32")] * 2
    standard = load_graph(int4 / "lower.tensorrt.onnx")
    products_for_plugins(standard)
    assert plugin_names(standard) == {names.PAGED_ATTENTION}
    found = []
    for one in (model, standard):
        ir.external_data.load_to_model(one)
        made = generate(plugin_step(one, kernels), kv, prompts, 1, schedule)
        found.append(np.stack([request.logits[0] for request in made]))
    assert cosine(found[1], found[0]) > 0.9999
