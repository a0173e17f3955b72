"""A tiny random LLaVA with its tokenizer and image processor, and what transformers generates with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import (
    AutoImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedConfig,
)

from tests.export.tiny_models import VOCABULARY, sharpened

IMAGE_TOKEN = 7
ROWS = 16
"""Rows of an image: 32 x 32 pixels in patches of 8, without the class token."""

PREPROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": 32},
    "do_center_crop": True,
    "crop_size": {"height": 32, "width": 32},
    "do_rescale": True,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.25, 0.25, 0.25],
    "do_convert_rgb": True,
}
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m.role }} {% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %} {% endfor %}"
    "{% endif %} {% endfor %}w3"
)


SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 192,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
"""Of the text model."""
VISION_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}


def llava_config(
    vision: PreTrainedConfig | None = None, text: PreTrainedConfig | None = None, **settings: Any
) -> LlavaConfig:
    """A CLIP tower and a Llama unless told otherwise."""
    return LlavaConfig(
        vision_config=vision or CLIPVisionConfig(**VISION_SIZES),
        text_config=text or LlamaConfig(**SIZES),
        image_token_id=IMAGE_TOKEN,
        tie_word_embeddings=False,
        attn_implementation="eager",
        **settings,
    )


def tiny_llava(config: LlavaConfig | None = None) -> LlavaForConditionalGeneration:
    """Weights large enough that an image decides the tokens."""
    torch.manual_seed(0)
    model: LlavaForConditionalGeneration = sharpened(LlavaForConditionalGeneration(config or llava_config()))
    return model


def llava_checkpoint(folder: Path, config: LlavaConfig | None = None) -> Path:
    """The model as a checkpoint: words w0, w1, ... are its tokens, and <image> one of them."""
    tiny_llava(config).save_pretrained(folder)
    words = {f"w{token}": token for token in range(VOCABULARY) if token != IMAGE_TOKEN}
    tokenizer = Tokenizer(models.WordLevel({**words, "<image>": IMAGE_TOKEN}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken("<image>", special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return folder


@torch.no_grad()
def generated(
    model: LlavaForConditionalGeneration,
    folder: Path,
    prompt: Sequence[int],
    pictures: Sequence[Image.Image],
    new_tokens: int,
) -> list[int]:
    """What transformers' own `generate` gives greedily; `prompt` holds ROWS placeholders a picture."""
    seen: dict[str, torch.Tensor] = {}
    if pictures:
        processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
        seen = {"pixel_values": processor(list(pictures), return_tensors="pt")["pixel_values"]}
    ids = torch.tensor([list(prompt)])
    model.generation_config.eos_token_id = None
    made = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=new_tokens,
        **seen,
    )
    tokens: list[int] = made[0, len(prompt) :].tolist()
    return tokens
