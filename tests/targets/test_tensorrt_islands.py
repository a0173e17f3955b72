"""Networks that 16 bit is too little for: the node is named, and kept in float32, by hand or by search."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from model_repo.runtime.errors import BadInput, GateFailed
from pipeline import BuildResult, Recipe, build
from pipeline.graph import load_graph
from pipeline.recipe import QuantizeRecipe
from pipeline.targets.native import linear
from tests.export.tiny_models import saved, tiny_llama
from tests.targets.small_networks import network

RTX, LOWERED = "tensorrt-rtx", "lower.tensorrt-rtx.onnx"


def overflowing(folder: Path) -> Path:
    """y = x w + (3000 x)^2 / 1e7: the square of ordinary numbers is beyond float16's 65504."""
    constants = {
        "w": np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32),
        "large": np.float32(3000),
        "small": np.float32(1e-7),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"], "product"),
        helper.make_node("Mul", ["x", "large"], ["scaled"], "scaled"),
        helper.make_node("Mul", ["scaled", "scaled"], ["squared"], "squared"),
        helper.make_node("Mul", ["squared", "small"], ["back"], "back"),
        helper.make_node("Add", ["product", "back"], ["y"], "end"),
    ]
    stored = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    path = folder / "overflowing.onnx"
    onnx.save(network(nodes, stored, opset=24), path)
    return path


def lowered(graph: Path, folder: Path, **quantize: Any) -> BuildResult:
    given = Recipe.for_model(str(graph), RTX).to_dict()
    given["quantize"] |= quantize
    return build(Recipe.from_dict(given), folder, stages=("export", "fuse", "lower"))


def notes(error: BaseException) -> str:
    return "\n".join(error.__notes__)


def test_the_node_that_is_not_finite_is_named(tmp_path: Path) -> None:
    with pytest.raises(GateFailed) as failed:
        lowered(overflowing(tmp_path), tmp_path / "out")
    told = notes(failed.value)
    assert "'squared'" in told
    assert "not finite" in told
    assert "--keep-float32 auto" in told


def test_a_search_keeps_it_in_float32_and_the_engine_is_built(tmp_path: Path) -> None:
    given = Recipe.for_model(str(overflowing(tmp_path)), RTX).to_dict()
    given["quantize"]["keep_float32"] = ["auto"]
    given["target"]["compute_capabilities"] = ["8.9"]
    result = build(Recipe.from_dict(given), tmp_path / "out")
    types = {node.name: node.outputs[0].dtype for node in load_graph(result.folder / LOWERED).graph}
    assert types["squared"].name == "FLOAT"
    assert types["product"].name == "FLOAT16"
    record = json.loads((result.folder / "layers.json").read_text())
    assert any(tensor["dtype"] == "Float" for layer in record["layers"] for tensor in layer["outputs"])
    assert record["made"]["float_islands"] == []


def test_bfloat16_needs_none(tmp_path: Path) -> None:
    lowered(overflowing(tmp_path), tmp_path / "out", precision="bf16", kv_dtype="bfloat16")


def test_nodes_can_be_named(tmp_path: Path) -> None:
    graph = overflowing(tmp_path)
    lowered(graph, tmp_path / "out", keep_float32=["squared", "back"])
    with pytest.raises(BadInput, match=r"names 'square', and the lowered graph has no .*; it has squared"):
        lowered(graph, tmp_path / "out", keep_float32=["square"])


def test_other_targets_take_no_such_choice() -> None:
    with pytest.raises(BadInput, match=r"\['a'\]; target onnxruntime takes no such choice"):
        Recipe.from_dict({"source": {"model": "demo"}, "quantize": {"keep_float32": ["a"]}})
    assert QuantizeRecipe().keep_float32 == ()


@pytest.mark.parametrize(
    ("target", "quantize"),
    [
        pytest.param(RTX, {}, marks=pytest.mark.wide),
        (RTX, {"precision": "int8"}),
        pytest.param("tensorrt", {"precision": "int8", "kv_dtype": "int8"}, marks=pytest.mark.wide),
        pytest.param("tensorrt", {"precision": "bf16"}, marks=pytest.mark.wide),
    ],
)
def test_a_decoder_outside_its_tolerance_is_walked_through(
    tmp_path: Path, target: str, quantize: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linear caches and pools, codes beside float16; and one node with a wrong result is the one that is named."""
    checkpoint = saved(tiny_llama(num_hidden_layers=1, head_dim=64), tmp_path / "tiny")
    data = tmp_path / "data.jsonl"
    lines = [json.dumps({"input_ids": [*range(first, first + 50)]}) for first in range(5, 149, 24)]
    data.write_text("\n".join(lines))
    nothing, all_of_it = {"min_cosine": -1.0, "min_top1": 0.0}, {"min_cosine": 1.0, "min_top1": 1.0}
    given = {
        "source": {"model": str(checkpoint)},
        "export": {"max_length": 64},
        "calibrate": {"data": str(data)},
        "quantize": quantize,
        "target": {"name": target},
        "parity": {"quantize": nothing, "narrow": all_of_it, "codes": all_of_it},
    }
    codes = ("calibrate", "quantize") if "precision" in quantize and "int8" in quantize.values() else ()
    if target == RTX:
        right = linear._Step.mask
        monkeypatch.setattr(linear._Step, "mask", lambda step, window: right(step, 5))
    with pytest.raises(GateFailed) as failed:
        build(Recipe.from_dict(given), tmp_path / "out", stages=("export", "fuse", *codes, "lower"))
    told = notes(failed.value)
    assert "was not found" not in told
    assert "--keep-float32 NODE" in told
    if target == RTX:
        assert "lower brought it in" in told
        assert "Attention" in told
