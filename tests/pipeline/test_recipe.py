"""The recipe: written and read back, refused in words, hashed by section."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model_repo.runtime.errors import BadInput
from pipeline.recipe import (
    MAX_LENGTH_CAP,
    ExportRecipe,
    FuseRecipe,
    ParityRecipe,
    Recipe,
    ServeRecipe,
    SourceRecipe,
    TargetRecipe,
    Tolerance,
)

recipes = st.builds(
    Recipe,
    source=st.builds(SourceRecipe, model=st.text(min_size=1).filter(str.strip), allow_pickle=st.booleans()),
    export=st.builds(ExportRecipe, max_length=st.none() | st.integers(1, 10**6)),
    fuse=st.builds(FuseRecipe, disable=st.lists(st.text()).map(tuple)),
    target=st.builds(
        TargetRecipe, max_batch=st.integers(1, 64), token_budget=st.integers(64, 4096), num_blocks=st.none()
    ),
    serve=st.builds(ServeRecipe, request_timeout_seconds=st.floats(0.01, 1e6)),
    parity=st.builds(ParityRecipe, fuse=st.builds(Tolerance, min_cosine=st.floats(-1, 1))),
)


@settings(deadline=None, max_examples=50)
@given(recipe=recipes)
@example(recipe=Recipe(SourceRecipe("a"), fuse=FuseRecipe(disable=("\x85",))))  # a line break, to YAML
def test_what_is_written_is_read_back(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    recipe.dump(path)
    assert Recipe.load(path) == recipe


def test_each_section_has_a_hash_of_its_own() -> None:
    first = Recipe.for_model("demo")
    second = dataclasses.replace(first, target=TargetRecipe(max_batch=8))
    assert first.fuse.sha256 == second.fuse.sha256
    assert first.target.sha256 != second.target.sha256
    assert first.sha256 != second.sha256


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({}, "no 'source.model'"),
        ({"source": {"model": "  "}}, "source.model is empty"),
        ({"source": {"model": 5}}, "source.model is 5; it must be text"),
        ({"source": {"model": "demo"}, "taget": {}}, "unknown key 'taget'.*did you mean 'target'"),
        (
            {"source": {"model": "demo"}, "target": {"thread": 2}},
            "'target.thread'.*mean 'threads'.*max_batch",
        ),
        ({"source": {"model": "demo"}, "target": 3}, "target is 3; it must hold"),
        (
            {"source": {"model": "demo"}, "target": {"name": "openvino"}},
            "target.name is 'openvino'.*onnxruntime, onnxruntime-cuda",
        ),
        (
            {"source": {"model": "demo"}, "target": {"compute_capabilities": ["8.9"]}},
            "compute_capabilities is for target tensorrt-rtx; .* onnxruntime",
        ),
        (
            {
                "source": {"model": "demo"},
                "target": {"name": "tensorrt-rtx", "compute_capabilities": ["sm89"]},
            },
            "compute_capabilities holds 'sm89'; they look like 8.9",
        ),
        ({"source": {"model": "demo"}, "target": {"max_sizes": ["n:3"]}}, "'n:3'; it must be NAME=SIZE"),
        ({"source": {"model": "demo"}, "quantize": {"precision": "fp17"}}, "'fp17'; available.*fp32"),
        ({"source": {"model": "demo"}, "target": {"max_batch": 0}}, "target.max_batch is 0.*at least 1"),
        ({"source": {"model": "demo"}, "target": {"max_batch": True}}, "max_batch is True.*whole number"),
        ({"source": {"model": "demo"}, "target": {"max_batch": 2.5}}, "max_batch is 2.5.*whole number"),
        ({"source": {"model": "demo"}, "target": {"max_batch": 600}}, "token_budget is 512.*600"),
        ({"source": {"model": "demo"}, "fuse": {"disable": "qkv"}}, "fuse.disable is 'qkv'.*list"),
        (
            {"source": {"model": "demo"}, "parity": {"fuse": {"min_cosine": float("nan")}}},
            "min_cosine is nan.*at least -1",
        ),
    ],
)
def test_what_is_not_allowed_is_refused_by_name(data: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        Recipe.from_dict(data)


@pytest.mark.parametrize(
    ("target", "given", "numbers"),
    [
        ("onnxruntime", {}, ("fp32", "float32", False)),
        ("tensorrt-rtx", {}, ("fp16", "float16", False)),
        ("tensorrt", {"precision": "bf16"}, ("bf16", "bfloat16", False)),
        ("onnxruntime", {"precision": "int8"}, ("int8", "float32", True)),
        ("onnxruntime", {"kv_dtype": "int8"}, ("fp32", "int8", True)),
        ("tensorrt", {"kv_dtype": "fp8"}, ("fp16", "fp8", True)),
    ],
)
def test_numbers_that_are_not_given_are_the_targets(
    target: str, given: dict[str, str], numbers: tuple[str, str, bool]
) -> None:
    data = {"source": {"model": "demo"}, "target": {"name": target}, "quantize": given}
    quantize = Recipe.from_dict(data).quantize
    assert (quantize.precision, quantize.kv_dtype, quantize.quantizes) == numbers


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no recipe at"):
        Recipe.load(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("source: [")
    with pytest.raises(BadInput, match="not a readable YAML"):
        Recipe.load(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(BadInput, match="mapping of sections"):
        Recipe.load(tmp_path / "list.yaml")


def test_lengths_and_blocks_that_are_not_given_are_derived() -> None:
    assert ExportRecipe().resolved_max_length(512) == 512
    assert ExportRecipe().resolved_max_length(10 * MAX_LENGTH_CAP) == MAX_LENGTH_CAP
    assert ExportRecipe(max_length=10_000).resolved_max_length(20_000) == 10_000
    with pytest.raises(BadInput, match="at most 512 tokens"):
        ExportRecipe(max_length=513).resolved_max_length(512)
    target = TargetRecipe(block_size=16, kv_cache_bytes=16 * 100 * 7)
    assert target.resolved_num_blocks(bytes_per_token=100, max_length=4096) == 7
    assert TargetRecipe(max_batch=2).resolved_num_blocks(bytes_per_token=4, max_length=100) == 2 * 7
    assert TargetRecipe(num_blocks=3).resolved_num_blocks(bytes_per_token=4, max_length=100) == 3
