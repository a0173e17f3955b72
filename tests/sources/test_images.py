"""Checkpoints that classify images: the size of an image, and all stages of one against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification, ConvNextConfig, ConvNextForImageClassification

from model_repo.runtime.errors import BadInput
from model_repo.runtime.tensors import TensorEngine
from pipeline import Recipe, build
from pipeline.check import check, verdict
from pipeline.inspect import inspect_folder
from pipeline.sources.images import ImageSource, image_task
from tests.export.image_families import family
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
    assert (source.name, source.kind, source.task) == ("birds", "tensors", "classification")
    assert images / "preprocessor_config.json" in source.files
    result = build(Recipe.for_model(str(images)), tmp_path / "out")
    found = check(result.folder)
    verdict(found)
    checked = {finding.what for finding in found}
    for step in ("_preprocess", "_tensors", "_postprocess", ""):
        assert f"birds{step}/config.pbtxt" in checked
    assert "birds_tensors: engine by sha256" in checked
    compiled = inspect_folder(result.folder).graphs["compile"]
    assert [(row.name, row.shape) for row in compiled.inputs] == [("pixel_values", ("batch", 3, 32, 48))]
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
    ("image_size", "size"), [(56, (56, 56)), ([56, 64], (56, 64)), (None, None), ([1, 2, 3], None)]
)
def test_without_a_processor_the_config_says_how_large_images_are(
    images: Path, image_size: Any, size: tuple[int, int] | None
) -> None:
    (images / "preprocessor_config.json").unlink()
    edit(images / "config.json", image_size=image_size)
    if size is None:
        with pytest.raises(BadInput, match="says how large images are"):
            opened(images)
        return
    source = opened(images)
    assert isinstance(source, ImageSource)
    model = source.load()
    assert model.images is None
    assert model.inputs[0].shape == ("batch", 3, *size)


@pytest.mark.parametrize(
    ("preprocessor", "size"),
    [
        ({"size": 40}, (40, 40)),
        ({"size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": 24}, (24, 24)),
        ({"image_processor_type": "ViTImageProcessor", "size": {"height": 40, "width": 24}}, (40, 24)),
        ({"image_processor_type": "CLIPImageProcessor", "size": 56, "crop_size": 48}, (48, 48)),
    ],
)
def test_the_processor_says_how_large_images_are(
    images: Path, preprocessor: dict[str, Any], size: tuple[int, int]
) -> None:
    (images / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    edit(images / "config.json", image_size=99)
    model = opened(images).load()
    assert model.images.preprocessing.size == size
    assert model.images.labels == ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3")
    assert model.inputs[0].shape == ("batch", 3, *size)


REFUSED: dict[str, tuple[Spoil, str]] = {
    "a setting": (
        lambda folder: edit(folder / "preprocessor_config.json", do_sharpen=True),
        "setting 'do_sharpen'.*Remove preprocessor_config.json .* to serve pixel_values alone",
    ),
    "any size": (
        lambda folder: edit(
            folder / "preprocessor_config.json",
            image_processor_type="ViTImageProcessor",
            do_resize=False,
            do_center_crop=False,
            size=None,
        ),
        "gives images of any size",
    ),
    "too few labels": (
        lambda folder: edit(folder / "config.json", id2label={"0": "a", "1": "b", "2": "c", "4": "d"}),
        "id2label is .*must name the labels 0, 1, ... without a gap",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_processor_that_cannot_be_served_is_refused(images: Path, spoil: Spoil, message: str) -> None:
    spoil(images)
    with pytest.raises(BadInput, match=message):
        opened(images).load()


def test_towers_need_their_pooler(tmp_path: Path) -> None:
    """transformers would fill a missing one with random numbers."""
    tower = family("CLIP, image tower").checkpoint(tmp_path / "tower")
    weights = load_file(tower / "model.safetensors")
    lost = next(name for name in weights if "visual_projection" in name)
    save_file({name: value for name, value in weights.items() if name != lost}, tower / "model.safetensors")
    with pytest.raises(
        BadInput, match=r"lacks 1 weights of CLIPVisionModelWithProjection .visual_projection"
    ):
        opened(tower).load()


@pytest.mark.parametrize(
    ("architecture", "config", "task"),
    [
        ("ViTForImageClassification", {}, "classification"),
        ("DetrForObjectDetection", {}, "detection"),
        ("SiglipVisionModel", {}, "embedding"),
        ("CLIPModel", {"text_config": {}, "vision_config": {}}, "embedding"),
        ("ResNetModel", {"num_channels": 3}, "embedding"),
        ("BertModel", {"vocab_size": 9}, None),
        ("BertModel", {"vocab_size": 9, "num_channels": 3}, None),
        ("Wav2Vec2Model", {}, None),
        ("LlavaForConditionalGeneration", {"text_config": {}, "vision_config": {}}, None),
    ],
)
def test_the_class_says_what_a_model_is_for(
    architecture: str, config: dict[str, Any], task: str | None
) -> None:
    assert image_task(config, architecture) == task


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
