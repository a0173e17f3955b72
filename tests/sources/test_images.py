"""Checkpoints that classify images: the size of an image, and all stages of one against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageClassification, ConvNextConfig, ConvNextForImageClassification

from model_repo.runtime.errors import BadInput
from model_repo.runtime.tensors import TensorEngine
from pipeline import Recipe, build
from pipeline.check import check, verdict
from pipeline.sources.images import ImageSource
from tests.sources.checkpoints import Spoil, edit, opened


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A tiny ConvNeXt with a preprocessor that crops to 32 x 48."""
    torch.manual_seed(0)
    config = ConvNextConfig(
        num_stages=2, hidden_sizes=[8, 16], depths=[1, 1], num_labels=4, layer_scale_init_value=1.0
    )
    folder = tmp_path / "birds"
    ConvNextForImageClassification(config).save_pretrained(folder)
    sizes = {"do_center_crop": True, "crop_size": {"height": 32, "width": 48}, "size": {"shortest_edge": 40}}
    (folder / "preprocessor_config.json").write_text(json.dumps(sizes))
    return folder


def test_a_classifier_of_images_is_built_and_answers_as_transformers(images: Path, tmp_path: Path) -> None:
    source = opened(images)
    assert isinstance(source, ImageSource)
    assert (source.name, source.kind, source.shape) == ("birds", "tensors", (3, 32, 48))
    assert images / "preprocessor_config.json" in source.files
    result = build(Recipe.for_model(str(images)), tmp_path / "out")
    verdict(check(result.folder))
    engine = TensorEngine.load(result.folder, threads=1)
    assert [(spec.name, spec.shape) for spec in engine.spec.inputs] == [
        ("pixel_values", ("batch", 3, 32, 48))
    ]
    assert [(spec.name, spec.shape) for spec in engine.spec.outputs] == [("logits", ("batch", 4))]
    assert engine.spec.batched
    pixels = np.random.default_rng(0).standard_normal((5, 3, 32, 48), dtype=np.float32)
    module = AutoModelForImageClassification.from_pretrained(images, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = module(torch.from_numpy(pixels)).logits.numpy()
    assert expected.std(axis=0).min() > 1e-4, "images are told apart"
    np.testing.assert_allclose(engine.run({"pixel_values": pixels})["logits"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("preprocessor", "image_size", "size"),
    [
        ({"size": 40}, None, (40, 40)),
        ({"size": {"shortest_edge": 40}}, None, (40, 40)),
        ({"size": {"height": 40, "width": 24}}, 99, (40, 24)),
        ({"do_center_crop": False, "crop_size": 32, "size": 40}, None, (40, 40)),
        ({}, 56, (56, 56)),
        ({}, [56, 64], (56, 64)),
    ],
)
def test_sizes_come_in_many_forms(
    images: Path, preprocessor: dict[str, Any], image_size: Any, size: tuple[int, int]
) -> None:
    (images / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    edit(images / "config.json", image_size=image_size)
    source = opened(images)
    assert isinstance(source, ImageSource)
    assert source.shape == (3, *size)


def _no_size(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()
    edit(folder / "config.json", image_size=None)


BAD: dict[str, tuple[Spoil, str]] = {
    "no size": (_no_size, "says how large images are"),
    "no channels": (
        lambda folder: edit(folder / "config.json", num_channels=0),
        "num_channels is 0; it must be",
    ),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "holds no weights"),
}


@pytest.mark.parametrize(("spoil", "message"), BAD.values(), ids=BAD.keys())
def test_a_bad_folder_is_refused(images: Path, spoil: Spoil, message: str) -> None:
    spoil(images)
    with pytest.raises(BadInput, match=message):
        opened(images)
