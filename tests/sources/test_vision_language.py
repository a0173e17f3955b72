"""Checkpoints of vision-language models: what is opened, what is refused, and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model_repo.runtime.errors import BadInput
from pipeline.export.vision_language import image_rows
from pipeline.sources.base import Placeholder
from pipeline.sources.vision_language import image_preprocessing
from tests.export.tiny_llava import IMAGE_TOKEN, PREPROCESSOR, ROWS, llava_checkpoint, tiny_llava
from tests.sources.checkpoints import Spoil, config, edit, opened, without


@pytest.fixture
def llava(tmp_path: Path) -> Path:
    return llava_checkpoint(tmp_path / "tiny-llava")


def test_a_llava_is_a_decoder_with_a_placeholder(llava: Path) -> None:
    source = opened(llava)
    assert source.kind == "decoder"
    assert source.placeholder == Placeholder("<image>", IMAGE_TOKEN)
    assert source.encoder is None
    assert source.max_length == 192
    assert source.end_token_ids == (2,)
    assert type(source.load()).__name__ == "LlavaForConditionalGeneration"
    assert image_preprocessing(llava, False).size == (32, 32)


def test_the_old_name_of_the_placeholder_is_read(llava: Path) -> None:
    edit(llava / "config.json", image_token_id=None, image_token_index=IMAGE_TOKEN)
    assert opened(llava).placeholder == Placeholder("<image>", IMAGE_TOKEN)


BAD: dict[str, tuple[Spoil, str]] = {
    "no image processor": (
        without("preprocessor_config.json"),
        "has no preprocessor_config.json that says how",
    ),
    "no such token": (config(image_token_id=9), "the placeholder of images is token 9"),
    "no token named": (
        config(image_token_id=None, image_token_index=None),
        "the placeholder of images is token None",
    ),
    "no tokenizer": (without("tokenizer.json"), "has no tokenizer.json"),
    "a family with tiles": (
        config(architectures=["SmolVLMForConditionalGeneration"], model_type="smolvlm"),
        "SmolVLMForConditionalGeneration, a vision-language model that is not supported; of those "
        "LlavaForConditionalGeneration is carried",
    ),
    "a family with attention to later tokens": (
        config(architectures=["Gemma3ForConditionalGeneration"], model_type="gemma3"),
        "Gemma3ForConditionalGeneration, a vision-language model that is not supported",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), BAD.values(), ids=BAD.keys())
def test_a_bad_folder_is_refused(llava: Path, spoil: Spoil, message: str) -> None:
    spoil(llava)
    with pytest.raises(BadInput, match=message):
        opened(llava)


PROCESSORS: dict[str, tuple[dict[str, Any], str]] = {
    "images of any size": ({**PREPROCESSOR, "do_center_crop": False}, "gives images of any size"),
    "images in their own size": (
        {"image_processor_type": "PixtralImageProcessor", "patch_size": 8, "size": {"longest_edge": 32}},
        "PixtralImageProcessorPil has the setting 'patch_size'",
    ),
    "squares of one colour around": (
        {**PREPROCESSOR, "image_processor_type": "LlavaImageProcessor", "do_pad": True},
        "the image processor",
    ),
}


@pytest.mark.parametrize(("settings", "message"), PROCESSORS.values(), ids=PROCESSORS.keys())
def test_other_image_processors_are_refused(llava: Path, settings: dict[str, Any], message: str) -> None:
    (llava / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(BadInput, match=message):
        image_preprocessing(llava, False)


def test_rows_are_counted_by_the_model() -> None:
    model = tiny_llava()
    assert image_rows(model, (3, 32, 32)) == (ROWS, 64)
    with pytest.raises(
        BadInput, match=r"gives pixel_values of \[3, 40, 40\], which LlavaForCond.* does not take"
    ):
        image_rows(model, (3, 40, 40))
