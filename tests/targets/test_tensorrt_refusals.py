"""What TensorRT-RTX's own parser refuses, and what the message then says to do."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from model_repo.runtime.errors import BadInput
from pipeline.targets.tensorrt.builder import parse_only
from pipeline.targets.tensorrt.complaints import builder_advice
from pipeline.targets.tensorrt.profiles import Sizes, profile
from plugins.tensorrt import names
from tests.targets.small_networks import network

SHAPES = [profile("any", {"x": ("n", 8)}, {"n": Sizes(1, 2, 4)})]


def parsed(model: Any, path: Path) -> str:
    path.write_bytes(model.SerializeToString())
    return parse_only("tensorrt-rtx", path, SHAPES)


def one(operator: str, domain: str = "", opset: int = 21, **attributes: Any) -> Any:
    node = helper.make_node(operator, ["x"], ["y"], "odd", domain=domain, **attributes)
    return network([node], opset=opset, domain=domain)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (one("Det"), r"refuses 1 nodes of g.onnx: Det 'odd': it has no such operator. Write these nodes"),
        (
            one("Nope", "mine"),
            r"Nope 'odd': .*Plugin not found.*There is no operator or plugin Nope; write it in",
        ),
        (
            one(names.PAGED_ATTENTION, names.DOMAIN, plugin_version="1", plugin_namespace="slipway"),
            r"PagedAttention 'odd': .*plugins are not loaded: run `make plugins`, or .* --plugin-library",
        ),
        (one("Relu", opset=25), r"the graph is of opset 25; the parsers of TensorRT know 9 to 24"),
        (one("Relu", opset=8), r"the graph is of opset 8; "),
    ],
    ids=["operator", "foreign plugin", "our plugin", "newer", "older"],
)
def test_a_refusal_says_what_to_do(model: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=words):
        parsed(model, tmp_path / "g.onnx")


def test_opsets_that_are_known_are_parsed(tmp_path: Path) -> None:
    for opset in (9, 24):
        assert parsed(one("Relu", opset=opset), tmp_path / "g.onnx").startswith("1.7")


def test_weights_that_are_gone_or_cut_short_are_told(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((8, 8), np.float32), "w")
    product = network([helper.make_node("MatMul", ["x", "w"], ["y"], "product")], [weight])
    path, data = tmp_path / "g.onnx", tmp_path / "g.bin"
    onnx.save(product, path, save_as_external_data=True, location=data.name, size_threshold=0)
    assert parse_only("tensorrt-rtx", path, SHAPES)
    os.truncate(data, 100)
    with pytest.raises(BadInput, match=r"'w'|shorter than the graph says: build again with --force"):
        parse_only("tensorrt-rtx", path, SHAPES)
    data.unlink()
    with pytest.raises(BadInput, match=r"g.bin|is gone or shorter"):
        parse_only("tensorrt-rtx", path, SHAPES)


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ("Error Code 2: OutOfMemory (Requested size was 8589934592 bytes.)", "asked for 8589934592 bytes"),
        (
            "Tactic Device request: 4096MB Available: 2000MB. Device memory is insufficient to use tactic",
            f"asked for {4096 * 2**20} bytes",
        ),
        ("Could not find any implementation for node a due to insufficient workspace.", "That is memory"),
    ],
)
def test_memory_that_is_lacking_is_told_in_bytes_with_what_to_lower(said: str, asked: str) -> None:
    """As TensorRT words it in its users' reports; no GPU is here that could run out of memory."""
    advice = builder_advice(["something else", said])
    assert asked in advice
    assert "--max-batch, --token-budget" in advice


def test_other_failures_get_no_advice_about_memory() -> None:
    unknown: Mapping[str, str] = {"assertion": "Assertion failed: k == 3"}
    assert builder_advice([*unknown.values()]) == ""
