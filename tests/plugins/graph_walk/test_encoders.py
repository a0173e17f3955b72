"""Encoders of texts and images that are lowered for TensorRT, walked, beside ONNX Runtime on the same file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from pipeline import Recipe, build
from pipeline.parity.sessions import graph_session
from plugins.graph_walk import onnx_file
from tests.export.image_families import FAMILIES
from tests.export.tiny_models import saved, sharpened
from tests.plugins.graph_walk.walking import walk


def bert(folder: Path) -> Path:
    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=150,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=40,
    )
    return saved(sharpened(BertModel(config)), folder)


def check(checkpoint: Path, output: Path, inputs: dict[str, np.ndarray]) -> None:
    build(Recipe.for_model(str(checkpoint), "tensorrt"), output, stages=("export", "fuse", "lower"))
    path = output / "lower.tensorrt.onnx"
    graph = onnx_file.read(path)
    with graph_session(path, output / "scratch.onnx") as session:
        names = [value.name for value in session.get_outputs()]
        theirs = dict(zip(names, session.run(names, inputs), strict=True))
    ours = walk(graph, inputs, {name: array.shape for name, array in theirs.items()})
    for name, array in theirs.items():
        assert np.abs(ours[name] - array).max() < 1e-2 * np.abs(array).max()


def test_texts_with_padding(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    mask = np.ones((3, 9), np.int64)
    mask[1, 5:] = mask[2, 2:] = 0
    inputs = {
        "input_ids": random.integers(0, 150, (3, 9)),
        "attention_mask": mask,
        "token_type_ids": np.zeros((3, 9), np.int64),
    }
    check(bert(tmp_path / "bert"), tmp_path / "out", inputs)


@pytest.mark.wide
@pytest.mark.parametrize(("name", "side"), [("ViT", 32), ("ResNet", 64)])
def test_images(name: str, side: int, tmp_path: Path) -> None:
    (family,) = (family for family in FAMILIES if family.name == name)
    pixels = np.random.default_rng(0).normal(size=(2, 3, side, side)).astype(np.float32)
    check(family.checkpoint(tmp_path / name), tmp_path / "out", {"pixel_values": pixels})
