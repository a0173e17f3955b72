"""A decoder that is lowered for TensorRT, walked: its logits, and its tokens through the runtime's whole loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from model_repo.runtime.contract import KVSpec, Limits
from model_repo.runtime.engine import Engine
from model_repo.runtime.errors import BadInput
from model_repo.runtime.host_device import Order
from pipeline.export.decoder import export_decoder
from pipeline.export.exported import ExportedGraph
from pipeline.fuse import fuse
from pipeline.graph import save_graph
from pipeline.parity.decoder import run_decoder
from pipeline.parity.sessions import graph_session
from pipeline.precision.plan import Precision
from pipeline.recipe import FuseRecipe
from pipeline.targets.tensorrt.plugin_form import lower_to_plugins
from plugins.cuda import emulated
from plugins.graph_walk.description import Graph
from plugins.graph_walk.invented import Decoder, invented
from plugins.graph_walk.loop import Loop
from plugins.graph_walk.onnx_file import described
from plugins.graph_walk.spec import decoder_spec
from plugins.graph_walk.teacher import Teacher
from plugins.graph_walk.widened import widened
from tests.export.tiny_models import VOCABULARY, greedy, tiny_llama
from tests.plugins.graph_walk.walking import CPU
from tests.plugins.tensorrt.quantized import quantize_pools, quantize_products

LAYERS, KV_HEADS, HEAD_DIM, MAX_LENGTH = 2, 2, 64, 64
LIMITS = Limits(max_batch=4, token_budget=13, max_length=MAX_LENGTH, block_size=16, num_blocks=20)
LENGTHS, NEW_TOKENS = (5, 21, 8, 40, 1), 8
WIDTHS = {"float16": np.float16, "int8": np.int8}


def model() -> Any:
    return tiny_llama(head_dim=HEAD_DIM, num_key_value_heads=KV_HEADS, num_hidden_layers=LAYERS)


@pytest.fixture(scope="module")
def exported() -> ExportedGraph:
    graph = export_decoder(model(), MAX_LENGTH, 24)
    fuse(graph.model, FuseRecipe(), max_length=MAX_LENGTH)
    return graph


def lowered(exported: ExportedGraph, precision: Precision = "fp16", **kinds: ir.DataType) -> ir.Model:
    graph = exported.model.clone()
    if "products" in kinds:
        quantize_products(graph, kinds["products"])
    if "pools" in kinds:
        quantize_pools(graph, kinds["pools"], KV_HEADS)
    lower_to_plugins(graph, precision, workers=4)
    return graph


@pytest.fixture(scope="module")
def plain(exported: ExportedGraph) -> Graph:
    return described(lowered(exported))


@pytest.fixture(scope="module")
def wanted() -> list[tuple[int, ...]]:
    """The float32 model's greedy tokens, by transformers."""
    return [tuple(greedy(model(), list(prompt), NEW_TOKENS)[0]) for prompt in prompts()]


def prompts() -> list[tuple[int, ...]]:
    random = np.random.default_rng(1)
    return [tuple(random.integers(4, VOCABULARY, length).tolist()) for length in LENGTHS]


def test_logits_are_those_of_onnx_runtime(exported: ExportedGraph, plain: Graph, tmp_path: Path) -> None:
    """Of each position of each prompt; ONNX Runtime runs the same file with the CPU's own operator as attention."""
    path = save_graph(lowered(exported), tmp_path / "graph.onnx").graph
    kv = [KVSpec(0, KV_HEADS, HEAD_DIM, HEAD_DIM, 0, "float16")] * LAYERS
    with graph_session(path, tmp_path / "scratch.onnx") as session:
        rows = run_decoder(session, kv, [list(prompt) for prompt in prompts()])
    teacher = Teacher(plain)
    for prompt, theirs in zip(prompts(), rows, strict=True):
        ours = teacher.logits(prompt, len(prompt)).numpy()
        assert np.abs(ours - theirs).max() < 2e-2 * np.abs(theirs).max()


@pytest.mark.parametrize("wide", [False, True], ids=["float16", "float32"])
def test_the_loop_gives_the_float32_models_tokens(
    plain: Graph, wanted: list[tuple[int, ...]], wide: bool
) -> None:
    """Chunks of prompts beside decode steps, requests that join late, decode steps captured and launched as one."""
    loop = Loop(widened(plain) if wide else plain, LIMITS, CPU, None)
    loop.warm_up()
    assert loop.tokens(prompts(), NEW_TOKENS) == wanted
    assert loop.tokens(prompts(), NEW_TOKENS) == wanted  # in pools full of the first run
    loop.close()


@pytest.mark.parametrize("order", ["at_once", "when_awaited", "in_thread"])
def test_so_it_does_with_the_kernels_and_sampling_on_the_device(
    plain: Graph, wanted: list[tuple[int, ...]], order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention, the carrying of tokens and sampling by the kernels' own sources, emulated, on a device that may lag
    behind the host as far as it can."""
    monkeypatch.setenv(
        "SLIPWAY_EMULATED_COMPUTE_CAPABILITY", "89"
    )  # read when the library's first kernel starts
    loop = Loop(plain, LIMITS, CPU, emulated.Build().library(), order=order)
    assert loop.tokens(prompts()[:3], 4) == [tokens[:4] for tokens in wanted[:3]]
    loop.close()


@pytest.mark.parametrize(
    "kinds",
    [
        {"products": ir.DataType.INT8, "pools": ir.DataType.INT8},
        {"products": ir.DataType.FLOAT8E4M3FN, "pools": ir.DataType.FLOAT8E4M3FN},
    ],
    ids=["int8", "fp8"],
)
def test_quantized_graphs_are_walked_as_onnx_runtime_runs_them(
    exported: ExportedGraph, kinds: dict[str, ir.DataType], tmp_path: Path
) -> None:
    """In chunks, so that what pools of eight bits keep is read back."""
    made = lowered(exported, **kinds)
    loop = Loop(described(made), LIMITS, CPU, None)
    prompt = prompts()[3]
    (tokens,) = loop.tokens([prompt], 6)
    teacher = Teacher(described(made))
    assert teacher.regret(prompt, tokens) < 0.3
    if kinds["pools"] == ir.DataType.INT8:
        path = save_graph(made, tmp_path / "graph.onnx").graph
        kv = [KVSpec(0, KV_HEADS, HEAD_DIM, HEAD_DIM, 0, "int8")] * LAYERS
        with graph_session(path, tmp_path / "scratch.onnx") as session:
            (theirs,) = run_decoder(session, kv, [list(prompt)])
        ours = teacher.logits(prompt, len(prompt)).numpy()
        assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.98


def test_tokens_that_are_not_the_models_are_found(plain: Graph, wanted: list[tuple[int, ...]]) -> None:
    teacher = Teacher(plain)
    assert teacher.regret(prompts()[0], wanted[0]) < 1e-2
    changed = (*wanted[0][:3], (wanted[0][3] + 1) % VOCABULARY, *wanted[0][4:])
    assert teacher.regret(prompts()[0], changed) > 0.5


def test_an_invented_graph_is_what_lowering_writes(exported: ExportedGraph, plain: Graph) -> None:
    """Of a model of the same sizes: the same operators in the same order, with the same attributes, and ends."""
    config = model().config
    sizes = Decoder(
        LAYERS,
        config.hidden_size,
        config.intermediate_size,
        config.num_attention_heads,
        KV_HEADS,
        HEAD_DIM,
        VOCABULARY,
        MAX_LENGTH,
        rms_norm_eps=config.rms_norm_eps,
    )
    made = invented(sizes, workers=4)
    assert {end.name: end for end in made.inputs} == {end.name: end for end in plain.inputs}
    assert {end.name: end for end in made.outputs} == {end.name: end for end in plain.outputs}
    assert signature(made) == signature(plain)


def signature(graph: Graph) -> list[tuple[str, str, str]]:
    """Operators with their attributes and the shapes of their weights, sorted: names and order are free."""
    found = []
    for node in graph.nodes:
        attributes = {name: value for name, value in node.attributes.items() if name != "epsilon"}
        shapes = [tuple(graph.weights[name].shape) for name in node.inputs if name in graph.weights]
        found.append((node.domain + node.operator, str(sorted(attributes.items())), str(shapes)))
    return sorted(found)


def test_specs_are_read_off_graphs(plain: Graph, exported: ExportedGraph) -> None:
    spec = decoder_spec(plain, Limits(8, 32, 1000, 16, 100))
    assert (spec.vocab_size, spec.max_length, len(spec.kv)) == (VOCABULARY, MAX_LENGTH, LAYERS)
    assert spec.kv[0] == KVSpec(0, KV_HEADS, HEAD_DIM, HEAD_DIM, 0, "float16")
    with pytest.raises(BadInput, match="the graph has no logits or no attention by the plugin; it has x"):
        decoder_spec(Graph((), (), (plain.outputs[0].__class__("x", "float32", ()),), {}), LIMITS)


def test_engines_are_loops_own(plain: Graph) -> None:
    loop = Loop(plain, LIMITS, CPU, None)
    assert isinstance(loop.engine, Engine)
    timed = loop.timed(prompts()[:3], 4)
    assert (timed.streams, timed.tokens, timed.host_seconds) == (3, 12, None)
    assert 0 < timed.step_seconds < timed.seconds


def test_bfloat16_is_walked(exported: ExportedGraph, wanted: list[tuple[int, ...]]) -> None:
    graph = described(lowered(exported, "bf16"))
    assert {end.dtype for end in graph.inputs if "cache" in end.name} == {"bfloat16"}
    prompt = prompts()[1]
    (tokens,) = Loop(graph, LIMITS, CPU, None).tokens([prompt], 6)
    assert Teacher(graph).regret(prompt, tokens) < 0.1
    assert torch.bfloat16 in {tensor.dtype for tensor in graph.weights.values()}
