"""Encoders and models of named tensors down to real engines of TensorRT-RTX, for SM 8.9, 12.0 and any GPU it knows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from transformers import BertConfig, BertModel

from model_repo.runtime.contract import AxisSpec, EngineSpec, TensorSpec
from model_repo.runtime.errors import BadInput
from pipeline import BuildResult, Recipe, build
from pipeline.recipe import TargetRecipe
from pipeline.targets.tensorrt.profiles import profiles_of
from tests.export.image_families import FAMILIES, VIT
from tests.export.tiny_models import saved, sharpened
from tests.fuse.graphs import graph

LAYERS, HIDDEN, MAX_BATCH = 2, 64, 4
TARGET = TargetRecipe(
    "tensorrt-rtx", max_batch=MAX_BATCH, token_budget=8, compute_capabilities=("8.9", "12.0")
)


def recipe(checkpoint: Path, **target: Any) -> Recipe:
    """For two chips unless `target` says otherwise."""
    return replace(Recipe.for_model(str(checkpoint), "tensorrt-rtx"), target=replace(TARGET, **target))


def record(result: BuildResult) -> dict[str, Any]:
    lowered = next(row for row in result.rows if row.stage == "lower").parity
    assert not isinstance(lowered, str)
    assert lowered["min_cosine"] > 0.999
    read: dict[str, Any] = json.loads((result.folder / "layers.json").read_text())
    assert read["made"]["reformats"] == read["made"]["float_islands"] == []
    return read


def fates(read: dict[str, Any]) -> dict[str, tuple[int, int, int]]:
    """Operator -> nodes, kernels that work on them, nodes with a kernel of their own."""
    return {
        fate["operator"]: (fate["nodes"], fate["kernels"], fate["own"]) for fate in read["made"]["operators"]
    }


def ends(read: dict[str, Any], side: str) -> dict[str, tuple[str, list[int]]]:
    return {end["name"]: (end["dtype"], end["shape"]) for end in read[side]}


def image_checkpoint(name: str, folder: Path) -> Path:
    (family,) = (family for family in FAMILIES if family.name == name)
    return family.checkpoint(folder)


def test_an_encoder_of_texts(tmp_path: Path) -> None:
    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=150,
        hidden_size=HIDDEN,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        max_position_embeddings=40,
    )
    checkpoint = saved(sharpened(BertModel(config)), tmp_path / "bert")
    chips = record(build(recipe(checkpoint), tmp_path / "out"))
    assert ends(chips, "inputs") == dict.fromkeys(
        ("input_ids", "attention_mask", "token_type_ids"), ("Int64", [-1, -1])
    )
    assert ends(chips, "outputs") == {"embedding": ("Float", [-1, HIDDEN])}
    assert chips["profiles"]["any"]["input_ids"] == [[1, 1], [MAX_BATCH, 40], [MAX_BATCH, 40]]
    assert fates(chips)["Attention"][2] == LAYERS
    norms, kernels, _ = fates(chips)["LayerNormalization"]
    assert norms == 2 * LAYERS + 1
    assert kernels <= norms + 1
    portable = record(build(recipe(checkpoint, compute_capabilities=()), tmp_path / "out"))
    assert portable["compute_capabilities"] == []
    assert fates(portable) == fates(chips)


def test_a_vision_transformer(tmp_path: Path) -> None:
    read = record(build(recipe(image_checkpoint("ViT", tmp_path / "vit")), tmp_path / "out"))
    side = VIT["image_size"]
    assert ends(read, "inputs") == {"pixel_values": ("Float", [-1, 3, side, side])}
    assert read["profiles"]["any"]["pixel_values"] == [
        [1, 3, side, side],
        [MAX_BATCH, 3, side, side],
        [MAX_BATCH, 3, side, side],
    ]
    assert fates(read)["Attention"][2] == fates(read)["Attention"][0] == VIT["num_hidden_layers"]
    assert fates(read)["LayerNormalization"][1] <= 2 * VIT["num_hidden_layers"] + 2


def test_a_network_of_convolutions(tmp_path: Path) -> None:
    read = record(build(recipe(image_checkpoint("ResNet", tmp_path / "resnet")), tmp_path / "out"))
    assert read["profiles"]["any"]["pixel_values"][2] == [MAX_BATCH, 3, 64, 64]
    convolutions, kernels, _ = fates(read)["Conv"]
    assert convolutions == len(find_convolutions(tmp_path / "out" / "export.onnx"))
    assert kernels <= convolutions + 3


def find_convolutions(graph: Path) -> list[ir.Node]:
    return [node for node in ir.load(graph).graph if node.op_type == "Conv"]


def test_a_size_without_a_bound_is_refused_with_the_option_that_gives_one() -> None:
    model = graph("g (float[rows, width] x) => (float[rows, width] y) { y = Relu (x) }")
    ends = tuple(TensorSpec(name, "float32", ("rows", "width")) for name in "xy")
    axes = (AxisSpec("rows"), AxisSpec("width", 2))
    spec = EngineSpec("tensors", "m", "tensorrt-rtx", "fp16", "engine.rtx", None, 0, 0)
    spec = replace(spec, inputs=ends[:1], outputs=ends[1:], axes=axes, batched=True)
    with pytest.raises(BadInput, match=r"the size 'width' .* has no bound.*give --max-size width=SIZE"):
        profiles_of(model, spec, TARGET)
    (found,) = profiles_of(model, spec, replace(TARGET, max_sizes=("width=96",)))
    assert found.shapes["x"] == ((1, 2), (MAX_BATCH, 96), (MAX_BATCH, 96))
    with pytest.raises(BadInput, match=r"'width' shall be at most 1; the model takes 2 to any"):
        profiles_of(model, spec, replace(TARGET, max_sizes=("width=1",)))
