"""`slipway build --target tensorrt` of a decoder: the paged plugin, run by the CPU's operator, and parsed."""

from __future__ import annotations

import dataclasses
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from click.testing import CliRunner

from model_repo.runtime.contract import KVSpec, Limits, key_cache_out, value_cache_out
from model_repo.runtime.errors import BadInput
from model_repo.runtime.host_device import HostDevice
from pipeline import Recipe, build
from pipeline.cli import main
from pipeline.fuse.matching import dims
from pipeline.graph import load_graph, save_graph
from pipeline.locate import beside, built
from pipeline.parity.compare import compare
from pipeline.parity.decoder import run_decoder
from pipeline.parity.sessions import graph_session
from pipeline.targets.tensorrt import builder, plugin_loading
from pipeline.targets.tensorrt.plugin_form import lower_to_plugins
from pipeline.targets.tensorrt.profiles import paged_profiles
from plugins.cuda import build as cuda_build
from plugins.graph_walk.engine import WalkingEngine
from plugins.graph_walk.onnx_file import read
from plugins.tensorrt import names
from tests.export.tiny_models import VOCABULARY, saved, tiny_llama

LAYERS, KV_HEADS, HEAD_DIM, MAX_LENGTH = 2, 2, 64, 64
LOWERED = "lower.tensorrt.onnx"


def model() -> Any:
    return tiny_llama(num_hidden_layers=LAYERS, num_key_value_heads=KV_HEADS, head_dim=HEAD_DIM)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(model(), tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    path.write_text("\n".join(json.dumps({"input_ids": [*range(n, n + 50)]}) for n in range(5, 149, 24)))
    return path


@pytest.fixture(scope="module")
def folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All stages up to the one that needs TensorRT."""
    output = tmp_path_factory.mktemp("build") / "tiny"
    options = ("--max-length", str(MAX_LENGTH), "--output", str(output))
    refused = CliRunner().invoke(main, ["build", str(checkpoint), "--target", "tensorrt", *options])
    assert refused.exit_code == 2, refused.output
    for words in (
        "the parser of TensorRT-RTX 1.7",
        "with the profiles decode_1, decode_8, decode, prefill, mixed",
        "pip install tensorrt",
    ):
        assert words in refused.output
    assert not list(output.glob(".staging*"))
    return output


def cosine(graph: Path, dtype: str, prompts: list[list[int]]) -> float:
    """The least of the lowered graph's rows of logits against those of the model in transformers, in float32."""
    kv = [KVSpec(0, KV_HEADS, HEAD_DIM, HEAD_DIM, 0, dtype)] * LAYERS
    with graph_session(graph, graph.with_name("scratch.onnx")) as session:
        found = run_decoder(session, kv, prompts)
    with torch.no_grad():
        wanted = [model()(torch.tensor([prompt])).logits[0].numpy() for prompt in prompts]
    least: float = compare(wanted, found, "transformers", top1=True)["min_cosine"]
    return least


def prompts() -> list[list[int]]:
    random = np.random.default_rng(2)
    return [random.integers(4, VOCABULARY, length).tolist() for length in (7, 39, 1)]


def test_each_attention_is_the_plugin_and_the_contract_is_the_paged_one(folder: Path) -> None:
    graph = load_graph(folder / LOWERED).graph
    attention = [node for node in graph if node.op_type == names.PAGED_ATTENTION]
    assert [node.domain for node in attention] == [names.DOMAIN] * LAYERS
    assert {node.domain for node in graph} == {"", names.DOMAIN}
    pool = (ir.DataType.FLOAT16, ("num_blocks", "block_size", KV_HEADS, HEAD_DIM))
    ends = {value.name: (value.dtype, dims(value)) for value in graph.outputs}
    assert ends == {
        "logits": (ir.DataType.FLOAT, ("selected", VOCABULARY)),
        **{name(layer): pool for layer in range(LAYERS) for name in (key_cache_out, value_cache_out)},
    }


def test_its_logits_are_those_of_transformers(folder: Path) -> None:
    assert cosine(folder / LOWERED, "float16", prompts()) > 0.9999
    parity = json.loads((folder / "lower.json").read_text())["parity"]
    assert parity["against"] == "fuse"
    assert parity["min_cosine"] > 0.9999


def test_inputs_go_where_the_plugin_says(folder: Path) -> None:
    """With cosines and sines exchanged in the first layer's `input_names`, nothing comes out right."""
    wrong = load_graph(folder / LOWERED)
    node = next(node for node in wrong.graph if node.op_type == names.PAGED_ATTENTION)
    given = node.attributes[names.INPUTS].as_string()
    exchanged = given.replace("cos_cache", "?").replace("sin_cache", "cos_cache").replace("?", "sin_cache")
    node.attributes[names.INPUTS] = ir.AttrString(names.INPUTS, exchanged)
    path = save_graph(wrong, folder / "wrong.onnx").graph
    assert cosine(path, "float16", prompts()) < 0.99


@pytest.mark.parametrize(
    ("quantize", "pools", "least"),
    [
        ({"precision": "bf16"}, "bfloat16", 0.99),
        ({"kv_dtype": "int8"}, "int8", 0.99),
        ({"kv_dtype": "fp8"}, "fp8", 0.95),
        pytest.param({"precision": "int8", "kv_dtype": "int8"}, "int8", 0.8, marks=pytest.mark.wide),
    ],
)
def test_pools_of_other_types(
    checkpoint: Path, data: Path, folder: Path, quantize: dict[str, str], pools: str, least: float
) -> None:
    loose = {"min_cosine": -1.0, "min_top1": 0.0}  # a random model, which rounding to codes changes entirely
    given = {
        "source": {"model": str(checkpoint)},
        "export": {"max_length": MAX_LENGTH},
        "calibrate": {"data": str(data)},
        "quantize": quantize,
        "target": {"name": "tensorrt"},
        "parity": {"quantize": loose, "codes": loose},
    }
    stages = ("export", "fuse", "lower")
    if "kv_dtype" in quantize:
        stages = ("export", "fuse", "calibrate", "quantize", "lower")
    build(Recipe.from_dict(given), folder, stages=stages)
    graph = load_graph(folder / LOWERED).graph
    kinds = {value.dtype for value in graph.inputs if "_cache_" in (value.name or "")}
    assert kinds == {ir.DataType.FLOAT8E4M3FN if pools == "fp8" else ir.DataType[pools.upper()]}
    assert cosine(folder / LOWERED, pools, prompts()) > least
    if pools == "fp8":
        with pytest.raises(
            BadInput, match=r"the parser of TensorRT-RTX .* takes it with the profiles decode"
        ):
            build(Recipe.from_dict(given), folder, stages=(*stages, "compile"))


def test_profiles_come_from_the_limits() -> None:
    limits = Limits(
        max_batch=8, token_budget=32, max_length=100, block_size=16, num_blocks=50, num_cross_blocks=0
    )
    pool = ("num_blocks", "block_size", KV_HEADS, HEAD_DIM)
    inputs = {
        "input_ids": ("tokens",),
        "cu_seqlens": ("batch + 1",),
        "block_table": ("batch", "max_blocks"),
        "logits_indices": ("selected",),
        "key_cache_0": pool,
    }
    made = {profile.name: profile.shapes for profile in paged_profiles(inputs, limits)}
    assert {name: shapes["input_ids"] for name, shapes in made.items()} == {
        "decode": ((1,), (8,), (8,)),
        "prefill": ((1,), (32,), (32,)),
        "mixed": ((1,), (32,), (32,)),
    }
    assert {name: shapes["block_table"].most for name, shapes in made.items()} == {
        "decode": (8, 7),
        "prefill": (1, 7),
        "mixed": (8, 7),
    }
    assert made["mixed"]["cu_seqlens"] == ((2,), (9,), (9,))
    assert made["mixed"]["key_cache_0"].most == (50, 16, KV_HEADS, HEAD_DIM)
    few = paged_profiles(inputs, dataclasses.replace(limits, token_budget=4))
    assert few[2].shapes["input_ids"].most == (8,)


def test_inputs_of_an_encoder_are_refused() -> None:
    ids, more = (
        ir.Value(name=name, type=ir.TensorType(ir.DataType.INT32), shape=ir.Shape(("tokens",)))
        for name in ("input_ids", "past_lens_1")
    )
    graph = ir.Graph([ids, more], [], nodes=[], opset_imports={"": 23}, name="decoder")
    with pytest.raises(BadInput, match=r"the decoder also reads past_lens_1, of an encoder or of images"):
        lower_to_plugins(ir.Model(graph, ir_version=10), "fp16")


def test_a_real_build_needs_the_kernels(
    checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "package_problem", lambda target: "")
    monkeypatch.setattr(cuda_build, "current_library", lambda: None)
    with pytest.raises(BadInput, match=r"CUDA kernels, which are not built here: run `make plugins`"):
        plugin_loading.kernels_to_run()
    options = ("--max-length", str(MAX_LENGTH), "--output", str(folder))
    refused = CliRunner().invoke(main, ["build", str(checkpoint), "--target", "tensorrt", *options])
    assert refused.exit_code == 2
    assert "run `make plugins`" in refused.output


def test_pools_of_another_width_are_refused(tmp_path: Path) -> None:
    options = ("--precision", "bf16", "--kv-dtype", "float16", "--output", str(tmp_path / "out"))
    refused = CliRunner().invoke(main, ["build", "demo", "--target", "tensorrt", *options])
    assert refused.exit_code == 2
    assert "keeps caches in bfloat16, int8, fp8 with precision bf16" in refused.output


def test_an_engine_is_held_against_the_graph_of_its_build(folder: Path) -> None:
    """On the host as a device, with the graph walked by torch in the engine's place."""
    device = HostDevice()
    found = beside(
        built(folder),
        device,
        lambda path: nullcontext(WalkingEngine(read(path), torch.device("cpu"), queue=device.queue)),
        None,
        8e-3,  # the longest sums' two orders, in float16
    )
    assert not found.departures
    assert {step.tensor for step in found.steps} >= {"logits"}


def test_holding_an_engine_against_its_graph_takes_a_gpu(
    folder: Path, checkpoint: Path, tmp_path: Path
) -> None:
    refused = CliRunner().invoke(main, ["locate", str(folder)])
    assert refused.exit_code == 2, refused.output
    assert "cuda-python" in refused.output
    refused = CliRunner().invoke(main, ["locate", str(checkpoint)])
    assert refused.exit_code == 2
    assert "holds no build; give a folder that `slipway build` wrote" in refused.output
