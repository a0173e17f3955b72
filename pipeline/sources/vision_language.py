"""Checkpoints of vision-language models: vision tower, projector, and a text model whose prompts hold images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_repo.runtime.errors import BadInput

from .base import Placeholder
from .files import read_json
from .image_processor import PREPROCESSOR, has_processor, load_processor, preprocessing

if TYPE_CHECKING:
    from model_repo.runtime.image_steps import Preprocessing

VISION_LANGUAGE = ("LlavaForConditionalGeneration",)
"""Classes that are carried: each image becomes the same number of rows, which take the place of placeholders in the
prompt, and the text model's attention is causal over them as over text."""

_TOKEN_KEYS = ("image_token_id", "image_token_index")


def is_vision_language(config: Mapping[str, Any], config_file: Path) -> bool:
    """Whether the checkpoint is a vision-language model.

    Raises BadInput for one of a class that is not carried.
    """
    architecture = str(config["architectures"][0])
    if architecture in VISION_LANGUAGE:
        return True
    tokens = any(isinstance(config.get(key), int) for key in _TOKEN_KEYS)
    if architecture.endswith("ForConditionalGeneration") and (tokens or "vision_config" in config):
        raise BadInput(
            f"{config_file} describes {architecture}, a vision-language model that is not supported; of those "
            f"{', '.join(VISION_LANGUAGE)} is carried"
        )
    return False


def placeholder_of(folder: Path, config: Mapping[str, Any]) -> Placeholder:
    """What stands for an image in a prompt.

    Raises BadInput without an image processor, and when config.json names no such token or the tokenizer has none.
    """
    if not has_processor(folder):
        raise BadInput(
            f"{folder} takes images, and has no {PREPROCESSOR} that says how they are prepared; save the checkpoint "
            "with its image processor"
        )
    token_id = next((config[key] for key in _TOKEN_KEYS if isinstance(config.get(key), int)), None)
    added = read_json(folder / "tokenizer.json").get("added_tokens") or ()
    for token in added:
        if isinstance(token, dict) and token_id is not None and token.get("id") == token_id:
            return Placeholder(str(token["content"]), token_id)
    raise BadInput(
        f"{folder}: the placeholder of images is token {token_id} ({' or '.join(_TOKEN_KEYS)} in config.json), which "
        "tokenizer.json does not list among its added_tokens; give the tokenizer that belongs to the checkpoint"
    )


def image_preprocessing(folder: Path, trust_remote_code: bool) -> Preprocessing:
    """How the checkpoint's images are prepared; imports transformers.

    Raises BadInput when its image processor does what is not known, or gives images of several sizes.
    """
    channels = read_json(folder / "config.json").get("vision_config", {}).get("num_channels", 3)
    steps = preprocessing(load_processor(folder, trust_remote_code), channels, folder)
    if steps.size is None:
        raise BadInput(
            f"{folder}: its image processor gives images of any size; a vision-language model is supported where all "
            "images get one height and width"
        )
    return steps
