"""`slipway build --target tensorrt-rtx`: all stages of a tiny decoder, by the real builder."""

from __future__ import annotations

import ctypes.util
import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
from click.testing import CliRunner, Result
from tritonclient.grpc import model_config_pb2

from model_repo.runtime.errors import BadInput, GateFailed
from model_repo.runtime.manifest import Manifest
from pipeline import BuildResult, Recipe, build
from pipeline.check import check, read_config, verdict
from pipeline.cli import main
from pipeline.plan_report import inspect_plan
from pipeline.stages import StageRow
from pipeline.targets.native import linear
from pipeline.targets.tensorrt import builder
from tests.export.tiny_models import VOCABULARY, saved, tiny_llama

LAYERS, KV_HEADS, HEAD_DIM, MAX_LENGTH = 2, 2, 64, 64
SLOTS, CHUNK = 4, 32
HAS_DRIVER = ctypes.util.find_library("cuda") is not None
"""Whether a GPU's driver is here, with which what is refused without one would go on."""
CACHES = [f"{kind}_cache_{layer}" for layer in range(LAYERS) for kind in ("key", "value")]


def recipe(checkpoint: Path, target: str = "tensorrt-rtx", **quantize: str) -> Recipe:
    chips = {"compute_capabilities": ["8.9", "12.0"]} if target == "tensorrt-rtx" else {}
    return Recipe.from_dict(
        {
            "source": {"model": str(checkpoint)},
            "export": {"max_length": MAX_LENGTH},
            "quantize": quantize,
            "target": {"name": target, "max_batch": SLOTS, "token_budget": CHUNK, **chips},
        }
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_llama(num_hidden_layers=LAYERS, num_key_value_heads=KV_HEADS, head_dim=HEAD_DIM)
    return saved(model, tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="module")
def result(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> BuildResult:
    return build(recipe(checkpoint), tmp_path_factory.mktemp("build") / "tiny")


@pytest.fixture
def built(result: BuildResult, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(result.folder, tmp_path / "built")


def slipway(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def files(folder: Path) -> dict[str, bytes]:
    """All files but those that only say when a build was tried."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (".hashes.json", ".lock", "build.json", "recipe.yaml")
    }


def row(result: BuildResult, stage: str) -> StageRow:
    return next(row for row in result.rows if row.stage == stage)


def test_the_lowered_graph_gives_the_float32_models_logits_and_the_engine_is_there(
    result: BuildResult,
) -> None:
    assert [row.stage for row in result.rows] == ["export", "fuse", "lower", "compile", "emit"]
    lowered = row(result, "lower").parity
    assert not isinstance(lowered, str)
    assert lowered["min_cosine"] > 0.9999
    assert lowered["top1"] > 0.95
    assert str(row(result, "compile").parity).startswith("not run: executing it takes a GPU")
    assert result.engine.name == "engine.rtx"
    verdict(check(result.folder))


def test_the_manifest_and_the_engine_are_of_the_linear_contract(result: BuildResult) -> None:
    spec = Manifest.read(result.folder / "engine.json").engine
    assert spec is not None
    assert (spec.target, spec.precision, spec.graph, spec.features) == (
        "tensorrt-rtx",
        "fp16",
        "engine.rtx",
        ("linear_cache",),
    )
    limits = spec.decoder_limits
    assert (limits.max_batch, limits.num_blocks, limits.block_size) == (SLOTS, SLOTS, MAX_LENGTH)
    assert {kv.dtype for kv in spec.kv} == {"float16"}
    record = json.loads((result.folder / "layers.json").read_text())
    cache = ["Half", [-1, KV_HEADS, MAX_LENGTH, HEAD_DIM]]
    assert {end["name"]: [end["dtype"], end["shape"]] for end in record["inputs"]} == {
        "input_ids": ["Int32", [-1, -1]],
        "past_lens": ["Int32", [-1]],
        "logits_indices": ["Int32", [-1]],
        **dict.fromkeys(CACHES, cache),
    }
    assert {end["name"]: [end["dtype"], end["shape"]] for end in record["outputs"]} == {
        "logits": ["Float", [-1, VOCABULARY]],
        **dict.fromkeys([name.replace("cache_", "cache_out_") for name in CACHES], cache),
    }
    assert record["profiles"]["decode"]["input_ids"] == [[1, 1], [SLOTS, 1], [SLOTS, 1]]
    assert record["profiles"]["prefill"]["input_ids"] == [[1, 1], [1, CHUNK], [1, CHUNK]]


def test_what_the_builder_made_of_it_is_within_its_limits(result: BuildResult) -> None:
    made = json.loads((result.folder / "layers.json").read_text())["made"]
    own = {(f["operator"], f["profile"]): (f["nodes"], f["own"]) for f in made["operators"]}
    assert own["Attention", "decode"] == own["Attention", "prefill"] == (LAYERS, LAYERS)
    assert made["reformats"] == made["float_islands"] == []
    assert made["kernels"]["decode"] <= 9 * LAYERS + 5
    assert made["kernels"]["prefill"] <= 12 * LAYERS + 5
    picture = ElementTree.fromstring((result.folder / "layers.svg").read_text())
    assert "TensorScatter" in "".join(picture.itertext())


def test_an_unchanged_build_runs_no_stage(result: BuildResult, checkpoint: Path) -> None:
    again = build(recipe(checkpoint), result.folder)
    assert [row.ran for row in again.rows] == [False] * 5


def test_inspect_shows_the_build_and_the_plan_by_itself(result: BuildResult, tmp_path: Path) -> None:
    shown = slipway("inspect", result.folder)
    assert shown.exit_code == 0
    for words in ("TensorRT-RTX 1.7.1", "Attention", "prefill: least, usual, most"):
        assert words in shown.output
    plain = json.loads(slipway("inspect", result.engine, "--json").output)
    assert plain["record"]["compute_capabilities"] == ["8.9", "12.0"]
    assert plain["version"] == plain["record"]["version"].rpartition(".")[0]
    alone = shutil.copy(result.engine, tmp_path / "moved.plan")
    assert inspect_plan(Path(alone)).record is None
    assert "takes a GPU's driver" in slipway("inspect", alone).output
    (tmp_path / "no.plan").write_bytes(b"ONNX" * 40)
    with pytest.raises(BadInput, match=r"is not a plan .* begins with b'ONNX'"):
        inspect_plan(tmp_path / "no.plan")


@pytest.mark.skipif(HAS_DRIVER, reason="a GPU's driver is here")
@pytest.mark.parametrize("command", [("generate", "--prompt-ids", "5"), ("bench",)], ids=lambda c: c[0])
def test_what_runs_the_engine_says_that_it_takes_a_gpu(built: Path, command: tuple[str, ...]) -> None:
    refused = slipway(command[0], built, *command[1:])
    assert refused.exit_code == 2, refused.output
    assert "'tensorrt-rtx', whose engines run on an NVIDIA GPU, and no driver is here" in refused.output


def test_evaluating_is_for_engines_on_a_cpu(built: Path) -> None:
    refused = slipway("evaluate", built)
    assert refused.exit_code == 2, refused.output
    assert "engines are evaluated on a CPU only: build for target 'onnxruntime'" in refused.output


@pytest.mark.skipif(HAS_DRIVER, reason="a GPU's driver is here")
def test_serving_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    refused = slipway("serve", "demo", "--target", "tensorrt-rtx", "--output", tmp_path / "out")
    assert refused.exit_code == 2
    assert "run on an NVIDIA GPU" in refused.output
    assert not (tmp_path / "out").exists()


def test_the_repository_is_one_for_a_gpu(result: BuildResult) -> None:
    model = result.repository / f"{result.folder.name}_generate"
    config = read_config(model / "config.pbtxt")
    assert [(group.kind, list(group.gpus)) for group in config.instance_group] == [
        (model_config_pb2.ModelInstanceGroup.KIND_GPU, [0])
    ]
    version = model / "1"
    assert (version / "engine/engine.rtx").read_bytes() == result.engine.read_bytes()
    assert "tensorrt-rtx>=1.7\ncuda-python>=13" in (version / "requirements.txt").read_text()


def test_bfloat16_is_compared_as_it_rounds(checkpoint: Path, built: Path) -> None:
    narrow = build(recipe(checkpoint, precision="bf16"), built, stages=("lower",))
    parity = row(narrow, "lower").parity
    assert not isinstance(parity, str)
    assert 0.99 < parity["min_cosine"] < 0.9999  # 8 bits, where float16 has 11
    inputs = {value.name: value.dtype for value in ir.load(built / "lower.tensorrt-rtx.onnx").graph.inputs}
    assert inputs["key_cache_0"] == ir.DataType.BFLOAT16


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("int8", "Int8"), pytest.param("fp8", "FP8", marks=pytest.mark.wide), ("int4", "Half")],
)
def test_codes_reach_the_engine(
    checkpoint: Path, built: Path, tmp_path: Path, precision: str, dtype: str
) -> None:
    lines = [json.dumps({"input_ids": list(range(first, first + 50))}) for first in range(5, 149, 24)]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    loose = {"min_cosine": -1.0, "min_top1": 0.0}  # a random model, which rounding to codes changes entirely
    given = recipe(checkpoint, precision=precision).to_dict()
    given |= {
        "calibrate": {"data": str(tmp_path / "data.jsonl")},
        "parity": {"quantize": loose, "codes": loose},
    }
    result = build(Recipe.from_dict(given), built)
    calibrated = ["calibrate"] if precision != "int4" else []
    assert [row.stage for row in result.rows] == [
        "export",
        "fuse",
        *calibrated,
        "quantize",
        "lower",
        "compile",
        "emit",
    ]
    parity = row(result, "lower").parity
    assert not isinstance(parity, str)
    assert parity["mean_cosine"] > 0.98
    record = json.loads((built / "layers.json").read_text())
    products = [
        layer for layer in record["layers"] if any(node.endswith("matmul") for node in layer["nodes"])
    ]
    read = {tensor["dtype"] for layer in products for tensor in layer["inputs"]}
    assert dtype in read
    assert record["made"]["float_islands"] == record["made"]["reformats"] == []


def test_a_wrong_mask_fails_the_gate_and_publishes_nothing(
    checkpoint: Path, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(built)
    right = linear._Step.mask
    monkeypatch.setattr(linear._Step, "mask", lambda step, window: right(step, 5))
    with pytest.raises(GateFailed, match=r"lower differs from fuse.*parity.narrow in the recipe"):
        build(recipe(checkpoint), built, stages=("lower",), force=True)
    assert files(built) == before


@pytest.mark.parametrize("end", [KeyboardInterrupt(), BadInput("the builder does not take it")])
def test_a_build_that_ends_early_leaves_what_was_there(
    checkpoint: Path, built: Path, monkeypatch: pytest.MonkeyPatch, end: BaseException
) -> None:
    before = files(built)

    def ends(module: str, function: str, arguments: dict[str, Any]) -> Any:
        if function != "build_here":
            return ""
        Path(f"{arguments['engine']}.part").write_bytes(b"half")
        raise end

    monkeypatch.setattr(builder, "in_child", ends)
    with pytest.raises(type(end)):
        build(recipe(checkpoint), built, stages=("compile",), force=True)
    assert files(built) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ("--compute-capability", "9.0"),
            "'9.0' is not one that .* it has 7.5, .*, 12.1. For other GPUs .* 'tensorrt'",
        ),
        (("--precision", "fp32"), "precision is 'fp32'; target 'tensorrt-rtx' takes fp16, bf16, int8"),
        (("--precision", "bf16", "--kv-dtype", "float16"), "keeps caches in bfloat16 with precision bf16"),
        (
            ("--kv-dtype", "fp8"),
            "caches in float16 .* takes no quantized cache. Target 'tensorrt' has a plugin",
        ),
    ],
)
def test_what_the_target_lacks_is_refused_before_anything_is_built(
    options: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    refused = slipway("build", "demo", "--target", "tensorrt-rtx", *options, "--output", tmp_path / "out")
    assert refused.exit_code == 2
    assert re.search(words, refused.output), refused.output
    assert not (tmp_path / "out").exists()
