"""LLaVA with other towers and text models, through the build and the engine loop, against transformers' generate."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    Qwen2Config,
    SiglipVisionConfig,
)

from model_repo.runtime.engine import Engine
from model_repo.runtime.image_encoder import ImageEncoder
from model_repo.runtime.images import pixel_values
from model_repo.runtime.request import Request, SamplingParams
from pipeline.builder import build
from pipeline.recipe import Recipe
from tests.export.tiny_llava import (
    IMAGE_TOKEN,
    SIZES,
    VISION_SIZES,
    generated,
    llava_checkpoint,
    llava_config,
)
from tests.pictures import encoded, scene

TOKENS = 16
VARIANTS = {
    "SigLIP without a class token, Qwen2": llava_config(
        SiglipVisionConfig(**VISION_SIZES),
        Qwen2Config(**SIZES),
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    ),
    "CLIP's class token and two of its layers, Mistral with a window shorter than an image": llava_config(
        text=MistralConfig(**SIZES, sliding_window=11),
        vision_feature_select_strategy="full",
        vision_feature_layer=[-3, -1],
    ),
}
PICTURES = [scene(70, 50, 1), scene(40, 66, 2)]
CASES = [
    ([9, IMAGE_TOKEN, 11, 30], [0]),
    ([9, IMAGE_TOKEN, 11, 30], [1]),
    ([12, IMAGE_TOKEN, 13, 44, IMAGE_TOKEN, 14], [1, 0]),
    ([50, 60, 70], []),
]
"""Prompts with one placeholder an image, and which of PICTURES take their places."""


@pytest.mark.wide
@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_it_completes_as_transformers(config: LlavaConfig, tmp_path: Path) -> None:
    checkpoint = llava_checkpoint(tmp_path / "llava", config)
    values = Recipe.from_dict({"source": {"model": str(checkpoint)}}).to_dict()
    values["target"] |= {"max_batch": 4, "token_budget": 24, "block_size": 8, "threads": 1}
    build(Recipe.from_dict(values), tmp_path / "out", stages=("export", "fuse", "lower", "compile"))
    model = LlavaForConditionalGeneration.from_pretrained(checkpoint)
    engine = Engine.load(tmp_path / "out", threads=1)
    spec = engine.spec.image_encoder
    assert spec is not None
    encoder = ImageEncoder(tmp_path / "out", spec, 1, engine.spec.plugin)
    requests, expected = [], []
    for place, (prompt, pictures) in enumerate(CASES):
        full = spec.expanded(prompt, len(pictures), engine.limits.max_length)
        pixels = pixel_values(spec, [encoded(PICTURES[each], "PNG") for each in pictures])
        rows = encoder.encode(pixels) if pictures else None
        sampling = SamplingParams(max_tokens=TOKENS, temperature=0.0, ignore_eos=True)
        requests.append(Request(str(place), tuple(full), sampling, prompt_embeds=rows))
        expected.append(generated(model, checkpoint, full, [PICTURES[each] for each in pictures], TOKENS))
    assert expected[0] != expected[1], "the images are not told apart"
    assert [list(one.token_ids) for one in engine.generate(requests)] == expected
