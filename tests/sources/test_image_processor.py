"""Image processors as steps: every way that is known gives transformers' numbers, and the rest is refused by name."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import assume, example, given
from hypothesis import strategies as st
from PIL import Image
from transformers.image_transforms import get_resize_output_image_size, get_size_with_aspect_ratio

from model_repo.runtime.errors import BadInput
from model_repo.runtime.image_steps import Preprocessing, Resize
from model_repo.runtime.images import Preprocessor, resized
from pipeline.sources.detectors import detection_steps
from pipeline.sources.image_processor import has_processor, load_processor, preprocessing
from tests.pictures import encoded, scene, see_through

SQUARE = {"height": 24, "width": 40}
PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "square": ("ViTImageProcessor", {"size": SQUARE}),
    "nearest": ("ViTImageProcessor", {"size": SQUARE, "resample": 0}),
    "lanczos": ("ViTImageProcessor", {"size": SQUARE, "resample": 1}),
    "box": ("ViTImageProcessor", {"size": SQUARE, "resample": 4}),
    "hamming": ("ViTImageProcessor", {"size": SQUARE, "resample": 5}),
    "not resized": ("ViTImageProcessor", {"do_resize": False}),
    "not rescaled": ("ViTImageProcessor", {"size": SQUARE, "do_rescale": False}),
    "not normalized": ("ViTImageProcessor", {"size": SQUARE, "do_normalize": False, "rescale_factor": 0.01}),
    "neither": ("ViTImageProcessor", {"size": SQUARE, "do_normalize": False, "do_rescale": False}),
    "one mean for all": ("ViTImageProcessor", {"size": SQUARE, "image_mean": 0.4, "image_std": 0.2}),
    "cropped": (
        "CLIPImageProcessor",
        {"size": {"shortest_edge": 31}, "crop_size": {"height": 25, "width": 30}},
    ),
    "zeros around": (
        "CLIPImageProcessor",
        {"size": {"shortest_edge": 20}, "crop_size": {"height": 33, "width": 20}},
    ),
    "cropped alone": ("CLIPImageProcessor", {"do_resize": False, "crop_size": {"height": 50, "width": 51}}),
    "ConvNeXt's, cropped": ("ConvNextImageProcessor", {"size": {"shortest_edge": 48}, "crop_pct": 0.9}),
    "ConvNeXt's, cropped twice": (
        "ConvNextImageProcessor",
        {
            "size": {"shortest_edge": 48},
            "do_center_crop": True,
            "crop_size": {"height": 32, "width": 56},
        },
    ),
    "ConvNeXt's, warped": ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}),
    "LeViT's": ("LevitImageProcessor", {"size": {"shortest_edge": 50}, "crop_size": SQUARE}),
    "EfficientNet's": ("EfficientNetImageProcessor", {"size": SQUARE}),
    "DETR's": ("DetrImageProcessor", {"size": {"shortest_edge": 40, "longest_edge": 61}}),
    "DETR's, padded": (
        "DetrImageProcessor",
        {"size": {"shortest_edge": 40, "longest_edge": 61}, "pad_size": {"height": 64, "width": 61}},
    ),
}
DETECTORS = {
    "DetrImageProcessor": ("softmax", 0),
    "ConditionalDetrImageProcessor": ("sigmoid", 100),
    "DeformableDetrImageProcessor": ("sigmoid", 100),
    "RTDetrImageProcessor": ("sigmoid", 0),
}


def made(name: str, **settings: Any) -> Any:
    return getattr(transformers, f"{name}Pil")(**settings)


@pytest.mark.parametrize(("name", "settings"), PROCESSORS.values(), ids=PROCESSORS.keys())
def test_a_processor_as_steps_gives_its_numbers(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    made(name, **settings).save_pretrained(tmp_path)
    processor = load_processor(tmp_path, trust_remote_code=False)
    steps = preprocessing(processor, 3, tmp_path)
    for size in ((77, 203), (150, 61), (9, 13), (64, 64)):
        picture = scene(size[1], size[0], 5)
        (expected,) = processor(images=[picture], return_tensors="np")["pixel_values"]
        found = Preprocessor(steps).prepare(picture).values
        np.testing.assert_array_equal(found, expected.astype(np.float32))
        assert steps.size in (None, found.shape[1:])


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P"])
def test_transparency_is_laid_over_white_where_the_processor_converts(kind: str) -> None:
    if kind == "P":
        data = encoded(scene(50, 30, 1).quantize(8), "PNG", transparency=3)
    else:
        data = encoded(see_through(scene(50, 30, 1)).convert(kind), "PNG")
    converting = made("CLIPImageProcessor", size={"shortest_edge": 20}, crop_size=SQUARE)
    steps = preprocessing(converting, 3, Path("x"))
    assert steps.over_white
    (expected,) = converting(images=[Image.open(io.BytesIO(data))], return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(Preprocessor(steps)(data).values, expected)
    hidden = Preprocessor(replace(steps, over_white=False))(data).values
    assert np.abs(hidden - expected).max() > 0.1, "nothing shows through"
    assert not preprocessing(made("ViTImageProcessor", size=SQUARE), 3, Path("x")).over_white


@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(1, 900), st.integers(0, 1400))
@example(1, 97, 64, 96)  # left as it is, though it is longer than the bound
def test_sizes_are_those_of_transformers(height: int, width: int, edge: int, bound: int) -> None:
    assume(not bound or bound >= edge)
    if bound:
        expected = get_size_with_aspect_ratio((height, width), edge, bound)
    else:
        picture = np.empty((1, height, width), np.uint8)
        expected = get_resize_output_image_size(picture, edge, False, input_data_format="channels_first")
    try:
        found = resized((height, width), Resize("bilinear", shortest_edge=edge, longest_edge=bound))
    except BadInput:
        assert not 0 < expected[0] * expected[1] <= 64_000_000
    else:
        assert found == expected


@pytest.mark.parametrize(("name", "way"), DETECTORS.items(), ids=DETECTORS.keys())
def test_detectors_find_objects_in_a_known_way(name: str, way: tuple[str, int]) -> None:
    found = detection_steps(made(name), Preprocessing(), ("a",), Path("x"))
    assert (found.scoring, found.candidates) == way


def test_older_files_and_nested_ones_are_read(tmp_path: Path) -> None:
    """As ResNet's and DETR's checkpoints of 2022 have it, and as processors of texts and images are saved today."""
    old = {"feature_extractor_type": "ConvNextFeatureExtractor", "crop_pct": 0.875, "size": 64, "resample": 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    steps = preprocessing(load_processor(tmp_path, False), 3, tmp_path)
    assert (steps.resize, steps.crops) == (Resize("bicubic", shortest_edge=73), ((64, 64),))
    older = {
        "feature_extractor_type": "DetrFeatureExtractor",
        "size": 80,
        "max_size": 133,
        "format": "coco_detection",
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(older))
    steps = preprocessing(load_processor(tmp_path, False), 3, tmp_path)
    assert steps.resize == Resize("bilinear", shortest_edge=80, longest_edge=133)
    (tmp_path / "preprocessor_config.json").unlink()
    assert not has_processor(tmp_path)
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "CLIPProcessor"}))
    assert not has_processor(tmp_path)
    nested = {
        "image_processor": {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 9}}
    }
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    assert has_processor(tmp_path)
    assert preprocessing(load_processor(tmp_path, False), 3, tmp_path).size == (8, 9)


VIT = {"image_processor_type": "ViTImageProcessor"}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a setting of others": (
        {**VIT, "do_centre_crop": True},
        r"ViTImageProcessor.* has the setting 'do_centre_crop' \(True\), which is not supported; known are crop_size",
    ),
    "channels turned": (
        {"image_processor_type": "MobileViTImageProcessor"},
        "MobileViTImageProcessor.* has the setting 'do_flip_channel_order'",
    ),
    "channels last": ({**VIT, "data_format": "channels_last"}, "setting 'data_format'"),
    "tiles": ({"image_processor_type": "LlavaNextImageProcessor"}, "setting 'image_grid_pinpoints'"),
    "a filter": (
        {**VIT, "resample": 9},
        r"resample is 9; supported are 0 \(nearest\), 1 \(lanczos\), 2 \(bilinear\)",
    ),
    "a size": ({**VIT, "size": {"max_height": 5, "max_width": 5}}, "height and width, or shortest_edge"),
    "a wrong size": ({**VIT, "size": {"edge": 5}}, "cannot make the image processor"),
    "one mean too many": (
        {**VIT, "image_mean": [0.5] * 4},
        "image_mean of ViTImageProcessorPil has 4 numbers; the model's images have 3 channels",
    ),
    "an unknown class": ({"image_processor_type": "OurImageProcessor"}, "cannot make the image processor"),
    "another order": (
        {"image_processor_type": "PerceiverImageProcessor"},
        "gives other pixels than the steps that are known",
    ),
}


@pytest.mark.parametrize(("settings", "message"), BAD.values(), ids=BAD.keys())
def test_what_is_not_known_is_refused_by_name(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(BadInput, match=message):
        preprocessing(load_processor(tmp_path, False), 3, tmp_path)


def test_images_have_one_channel_or_three() -> None:
    with pytest.raises(BadInput, match=r"num_channels is 4; images of 1 \(grey\) and 3 \(RGB\) are prepared"):
        preprocessing(made("ViTImageProcessor"), 4, Path("x"))


def test_a_classifiers_processor_finds_no_objects() -> None:
    with pytest.raises(BadInput, match="ViTImageProcessorPil finds no objects"):
        detection_steps(made("ViTImageProcessor"), Preprocessing(), (), Path("x"))
