"""`slipway build --target onnxruntime-cuda`: com.microsoft.PagedAttention, run by the CPU's operator."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from click.testing import CliRunner
from transformers import BertConfig, BertModel

from model_repo.runtime.attention_metadata import attention_metadata
from model_repo.runtime.contract import KVSpec, StepTensors
from model_repo.runtime.engine import Engine
from model_repo.runtime.errors import BadInput
from model_repo.runtime.manifest import Manifest
from model_repo.runtime.onnxruntime_cuda_executor import OnnxRuntimeCudaExecutor, cuda_session
from model_repo.runtime.request import Request, SamplingParams
from pipeline import Recipe, build
from pipeline.check import check, verdict
from pipeline.cli import main
from pipeline.graph import load_graph, save_graph
from pipeline.parity.compare import compare
from pipeline.parity.decoder import run_decoder
from pipeline.parity.plugins import operators_for_plugins
from pipeline.parity.sessions import graph_session
from pipeline.targets.contrib_attention import CONTRIB, check_blocks, flash_tile, lower_to_contrib
from pipeline.targets.schema_check import check_schemas, contrib_schemas
from plugins.cpu.build import registered
from plugins.schemas import PAGED_ATTENTION
from tests.export.tiny_models import VOCABULARY, saved, sharpened, tiny_llama
from tests.plugins.attention_case import Shape, make_step, node_model

LAYERS, KV_HEADS, HEAD_DIM, MAX_LENGTH = 2, 2, 64, 64
LOWERED = "lower.onnxruntime-cuda.onnx"


def model() -> Any:
    return tiny_llama(num_hidden_layers=LAYERS, num_key_value_heads=KV_HEADS, head_dim=HEAD_DIM)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(model(), tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="module")
def folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("build") / "tiny"
    options = ("--max-length", str(MAX_LENGTH), "--output", str(output))
    built = CliRunner().invoke(main, ["build", str(checkpoint), "--target", "onnxruntime-cuda", *options])
    assert built.exit_code == 0, built.output
    return output


def cosine(graph: Path, dtype: str) -> float:
    """The least of the lowered graph's rows of logits against those of the model in transformers, in float32."""
    random = np.random.default_rng(2)
    prompts = [random.integers(4, VOCABULARY, length).tolist() for length in (7, 39, 1)]
    kv = [KVSpec(0, KV_HEADS, HEAD_DIM, HEAD_DIM, 0, dtype)] * LAYERS
    with graph_session(graph, graph.with_name("scratch.onnx")) as session:
        found = run_decoder(session, kv, prompts)
    with torch.no_grad():
        wanted = [model()(torch.tensor([prompt])).logits[0].numpy() for prompt in prompts]
    least: float = compare(wanted, found, "transformers", top1=True)["min_cosine"]
    return least


def one_node(shape: Shape) -> ir.Model:
    """A graph of one attention node, whose pools and tables have fixed sizes as an export's have."""
    step = make_step(shape, [(0, 3)])
    made = ir.from_proto(node_model(shape, frozenset(step.inputs), outputs=3))
    for value in made.graph.inputs:
        value.shape = ir.Shape(step.inputs[value.name or ""].shape)
    return made


def attention(folder: Path) -> list[ir.Node]:
    graph = load_graph(folder / LOWERED).graph
    return [node for node in graph if node.domain == CONTRIB and node.op_type == PAGED_ATTENTION.name]


def test_the_operators_have_the_same_order_of_inputs() -> None:
    theirs = [parameter.name for parameter in contrib_schemas()["PagedAttention"].inputs]
    assert [parameter.name for parameter in PAGED_ATTENTION.inputs][: len(theirs)] == theirs


def test_its_logits_are_those_of_transformers_and_the_engine_is_that_graph(folder: Path) -> None:
    assert cosine(folder / LOWERED, "float16") > 0.9999
    assert json.loads((folder / "lower.json").read_text())["parity"]["min_cosine"] > 0.9999
    manifest = Manifest.read(folder / "engine.json")
    assert manifest.engine is not None
    assert (manifest.engine.target, manifest.engine.decoder_limits.block_size) == ("onnxruntime-cuda", 256)
    assert "it is the lowered graph" in str(manifest.parity)
    engine, lowered = (load_graph(folder / name).graph for name in ("engine.onnx", LOWERED))
    assert [node.name for node in engine] == [node.name for node in lowered]
    verdict(check(folder))


def test_attention_writes_in_place_and_all_else_is_standard_16_bit(folder: Path) -> None:
    graph = load_graph(folder / LOWERED).graph
    assert len(attention(folder)) == LAYERS
    assert [value.name for value in graph.outputs] == ["logits"]
    assert {node.domain for node in graph} == {"", CONTRIB}
    wide = [node.op_type for node in graph if node.outputs[0].dtype == ir.DataType.FLOAT]
    assert wide == ["Cast"]  # of the logits


def test_exchanged_tables_do_not_come_out_right(folder: Path) -> None:
    wrong = load_graph(folder / LOWERED)
    node = next(node for node in wrong.graph if node.op_type == PAGED_ATTENTION.name)
    cos, sin = (PAGED_ATTENTION.input_index(name) for name in ("cos_cache", "sin_cache"))
    tables = node.inputs[cos], node.inputs[sin]
    node.replace_input_with(cos, tables[1])
    node.replace_input_with(sin, tables[0])
    assert cosine(save_graph(wrong, folder / "wrong.onnx").graph, "float16") < 0.99


def _set(node: ir.Node, name: str, value: ir.Attr | None) -> None:
    node.attributes.pop(name, None)
    if value is not None:
        node.attributes[name] = value


FAULTS: dict[str, tuple[Callable[[ir.Node], None], str]] = {
    "type": (
        lambda node: setattr(node.inputs[0], "type", ir.TensorType(ir.DataType.FLOAT)),
        r"'query' is tensor\(float\); it may be tensor\(bfloat16\), tensor\(float16\)",
    ),
    "mixed": (
        lambda node: setattr(node.inputs[0], "type", ir.TensorType(ir.DataType.BFLOAT16)),
        r"is tensor\(float16\), and another of its type is tensor\(bfloat16\)",
    ),
    "missing": (lambda node: node.replace_input_with(7, None), "'block_table' is needed"),
    "needed": (lambda node: _set(node, "num_heads", None), "attribute 'num_heads' is needed"),
    "unknown": (lambda node: _set(node, "heads", ir.AttrInt64("heads", 2)), "it has no attribute 'heads'"),
    "kind": (
        lambda node: _set(node, "scale", ir.AttrInt64("scale", 1)),
        "attribute 'scale' is INT and has to be FLOAT",
    ),
    "operator": (lambda node: setattr(node, "op_type", "PagedAttention2"), "no such operator"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_node_is_held_against_the_operators_own_schema(folder: Path, name: str) -> None:
    broken = load_graph(folder / LOWERED)
    node = next(node for node in broken.graph if node.op_type == PAGED_ATTENTION.name)
    check_schemas(broken)
    change, words = FAULTS[name]
    change(node)
    with pytest.raises(BadInput, match=words):
        check_schemas(broken)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (Shape(alibi=True), "uses alibi_slopes, which com.microsoft"),
        (Shape(distances=3), "uses distance_bias, which com.microsoft"),
        (Shape(value_dim=16), "keys of 32 and values of 16 elements"),
        (Shape(head_dim=20), "heads of 20 elements; .* multiples of 8"),
        (Shape(head_dim=24, rotary_dim=16), "heads of 24 elements; .* multiples of 16 with rotary tables"),
        (Shape(rotary_dim=8), "turns 8 elements of each head"),
    ],
)
def test_what_the_operator_lacks_is_refused_by_name(shape: Shape, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        lower_to_contrib(one_node(shape), "fp16")


def test_positions_of_the_models_own_are_refused() -> None:
    made = one_node(Shape(rotary_dim=16))
    node = next(iter(made.graph))
    place = PAGED_ATTENTION.input_index("position_ids")
    given = node.inputs[place]
    moved = ir.node("Neg", [given])
    made.graph.insert_before(node, moved)
    node.replace_input_with(place, moved.outputs[0])
    with pytest.raises(BadInput, match="by positions of its own"):
        lower_to_contrib(made, "fp16")


@pytest.mark.parametrize(("size", "advice"), [(8, 16), (24, 32), (48, 64)])
def test_blocks_are_powers_of_two(folder: Path, size: int, advice: int) -> None:
    with pytest.raises(BadInput, match=f"block_size is {size}; .* Give --block-size {advice}"):
        check_blocks(load_graph(folder / LOWERED), size)


def test_sinks_want_blocks_of_whole_tiles() -> None:
    made = one_node(Shape(sinks=True, head_dim=128))
    for node in made.graph:
        node.domain = CONTRIB
    assert [flash_tile(size) for size in (64, 72, 128, 256)] == [256, 128, 128, 64]
    check_blocks(made, 128)
    with pytest.raises(BadInput, match=r"multiple of 128 tokens; .* is 64"):
        check_blocks(made, 64)


@pytest.mark.parametrize(
    ("quantize", "pools", "least"),
    [({"precision": "bf16"}, "bfloat16", 0.99), ({"kv_dtype": "int8"}, "int8", 0.99)],
)
def test_pools_of_other_types(
    checkpoint: Path, folder: Path, tmp_path: Path, quantize: dict[str, str], pools: str, least: float
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps({"input_ids": [*range(n, n + 50)]}) for n in range(5, 149, 24)))
    loose = {"min_cosine": -1.0, "min_top1": 0.0}  # a random model, which rounding to codes changes entirely
    given = {
        "source": {"model": str(checkpoint)},
        "export": {"max_length": MAX_LENGTH},
        "calibrate": {"data": str(data)},
        "quantize": quantize,
        "target": {"name": "onnxruntime-cuda"},
        "parity": {"quantize": loose, "codes": loose},
    }
    between = ("calibrate", "quantize") if "kv_dtype" in quantize else ()
    build(Recipe.from_dict(given), folder, stages=("export", "fuse", *between, "lower", "compile"))
    assert cosine(folder / LOWERED, pools) > least
    node = attention(folder)[0]
    assert node.inputs[PAGED_ATTENTION.input_index("key_cache")].dtype == ir.DataType[pools.upper()]  # type: ignore[union-attr]
    if pools == "int8":
        assert node.attributes["k_quant_type"].as_string() == "PER_CHANNEL"
        scales = node.inputs[PAGED_ATTENTION.input_index("k_scale")]
        assert scales is not None
        assert scales.const_value is not None
        assert scales.const_value.shape.numpy() == (KV_HEADS, 1, HEAD_DIM)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--precision", "int8"), "writing them out as floats first"),
        (("--precision", "fp32"), "it computes in 16 bit"),
        (("--kv-dtype", "bfloat16"), "keeps caches in float16, int8, fp8 with precision fp16"),
    ],
)
def test_numbers_that_it_has_not_are_refused_before_anything_is_built(
    tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    output = ("--output", str(tmp_path / "out"))
    refused = CliRunner().invoke(main, ["build", "demo", "--target", "onnxruntime-cuda", *options, *output])
    assert refused.exit_code == 2
    assert words in " ".join(refused.output.split())
    assert not (tmp_path / "out").exists()


def test_an_encoder_is_standard_operators_in_16_bit(tmp_path: Path) -> None:
    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=150, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=40,
    )  # fmt: skip
    checkpoint = saved(sharpened(BertModel(config)), tmp_path / "bert")
    result = build(Recipe.for_model(str(checkpoint), "onnxruntime-cuda"), tmp_path / "out")
    parity = next(row for row in result.rows if row.stage == "lower").parity
    assert not isinstance(parity, str)
    assert parity["min_cosine"] > 0.999
    graph = load_graph(result.folder / "engine.onnx").graph
    assert {node.domain for node in graph} == {""}
    (embedding,) = graph.outputs
    assert embedding.dtype == ir.DataType.FLOAT


def test_what_attention_is_told_on_the_host() -> None:
    empty = np.zeros(1, np.int32)
    step = StepTensors(
        input_ids=np.zeros(6, np.int32),
        position_ids=np.zeros(6, np.int32),
        cu_seqlens=np.array([0, 4, 5, 6], np.int32),
        past_lens=np.array([10, 30, 0], np.int32),
        block_table=np.zeros((3, 8), np.int32),
        slot_mapping=np.zeros(6, np.int32),
        logits_indices=empty,
    )
    assert attention_metadata(step).tolist() == [4, 31, 31]


def test_the_loop_over_the_executor_gives_the_graphs_own_tokens(checkpoint: Path, tmp_path: Path) -> None:
    """The lowered graph, its attention by the CPU's operator, bound as it will be on a GPU; against the same graph
    that is given each completion as a prompt."""
    result = build(
        Recipe.from_dict(
            {
                "source": {"model": str(checkpoint)},
                "export": {"max_length": MAX_LENGTH},
                "target": {"name": "onnxruntime-cuda", "token_budget": 16, "block_size": 16},
            }
        ),
        tmp_path / "out",
        stages=("export", "fuse", "lower", "compile"),
    )
    spec = Manifest.read(result.folder / "engine.json").engine
    assert spec is not None
    graph = load_graph(result.folder / "engine.onnx")
    told = next(value for value in graph.graph.inputs if value.name == "attention_metadata")
    operators_for_plugins(graph)
    graph.graph.inputs.append(told)
    path = save_graph(graph, result.folder / "on_cpu.onnx").graph
    options = ort.SessionOptions()
    registered(options)
    session = cuda_session(path, device="cpu", options=options)
    executor = OnnxRuntimeCudaExecutor(session, spec, 12, device="cpu")
    random = np.random.default_rng(3)
    prompts = [random.integers(4, VOCABULARY, length).tolist() for length in (5, 31, 1, 18)]
    sampling = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
    engine = Engine(executor, spec, num_blocks=12)
    completions = engine.generate([Request(str(i), tuple(p), sampling) for i, p in enumerate(prompts)])
    whole = [[*prompt, *made.token_ids] for prompt, made in zip(prompts, completions, strict=True)]
    with graph_session(result.folder / LOWERED, result.folder / "scratch.onnx") as again:
        logits = run_decoder(again, spec.kv, whole)
    for prompt, made, rows in zip(prompts, completions, logits, strict=True):
        before = rows[len(prompt) - 1 : -1]
        chosen = before[np.arange(8), list(made.token_ids)]
        # Chunks are cut elsewhere here, and 16 bits round otherwise then: of two equally likely tokens either may come.
        assert (before.max(-1) - chosen < 0.01 * np.ptp(before, axis=-1)).all()
    assert len({token for made in completions for token in made.token_ids}) > 10
    assert executor._metadata.tolist()[0] == 1
