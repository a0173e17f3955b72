"""Towers, a two-tower model and a detector of transformers as named tensors: every output, at sizes of no example."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from pipeline import ModuleExample
from pipeline.export.module import TorchModel
from pipeline.export.tensors import export_tensors
from tests.export.runners import serialized, session
from tests.export.tiny_models import sharpened

TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


class Case(NamedTuple):
    """A model, inputs by the sizes of the dynamic axes, those axes, and whether requests may be joined."""

    model: Callable[[], nn.Module]
    inputs: Callable[[int, int], dict[str, Tensor]]
    dynamic: Mapping[str, Mapping[int, str]]
    outputs: set[str]
    batched: bool


def images(number: int, side: int = 32) -> Tensor:
    return torch.randn(number, 3, side, side)


def detector() -> nn.Module:
    backbone = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 16, 32],
        depths=[1] * 4,
        layer_type="basic",
        out_features=["stage4"],
    )
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        backbone=None,
        backbone_config=backbone,
        use_pretrained_backbone=False,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        num_queries=5,
        num_labels=4,
    )
    return transformers.DetrForObjectDetection(config)


def two_towers() -> nn.Module:
    text = {**TOWER, "vocab_size": 99, "max_position_embeddings": 16, "eos_token_id": 98, "bos_token_id": 97}
    return transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=TOWER, projection_dim=16)
    )


CASES = {
    "CLIP's image tower": Case(
        lambda: transformers.CLIPVisionModelWithProjection(
            transformers.CLIPVisionConfig(**TOWER, projection_dim=16)
        ),
        lambda number, _: {"pixel_values": images(number)},
        {"pixel_values": {0: "batch"}},
        {"image_embeds", "last_hidden_state"},
        True,
    ),
    "SigLIP's image tower": Case(
        lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**TOWER)),
        lambda number, _: {"pixel_values": images(number)},
        {"pixel_values": {0: "batch"}},
        {"last_hidden_state", "pooler_output"},
        True,
    ),
    "CLIP, whose scores are of all pairs": Case(
        two_towers,
        lambda number, length: {
            "input_ids": torch.randint(0, 90, (number, length)),
            "pixel_values": images(2),
        },
        {"input_ids": {0: "texts", 1: "length"}, "pixel_values": {0: "images"}},
        {"logits_per_image", "text_embeds", "image_embeds"},
        False,
    ),
    "DETR": Case(
        detector,
        lambda number, _: {
            "pixel_values": images(number, 64),
            "pixel_mask": torch.ones(number, 64, 64).long(),
        },
        {"pixel_values": {0: "batch"}, "pixel_mask": {0: "batch"}},
        {"logits", "pred_boxes"},
        True,
    ),
}


@pytest.mark.wide
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_vision_model_gives_what_transformers_gives(case: Case) -> None:
    torch.manual_seed(0)
    model = sharpened(case.model())
    limits = {"length": (2, 16)} if "input_ids" in case.dynamic else {}
    example = ModuleExample(model, case.inputs(3, 7), case.dynamic, limits=limits)
    made = export_tensors(TorchModel.of(example, "test:build", 100.0), opset=24)
    assert made.batched == case.batched
    assert case.outputs <= {spec.name for spec in made.outputs}
    inputs = case.inputs(5, 11)
    with torch.no_grad():
        expected: Any = model(**inputs)
    names = [spec.name for spec in made.outputs]
    found = session(serialized(made.graph)).run(
        names, {name: value.numpy() for name, value in inputs.items()}
    )
    for name, array in zip(names, found, strict=True):
        if name in expected:
            np.testing.assert_allclose(array, expected[name].numpy(), rtol=1e-4, atol=1e-4)
            assert array.std() > 0.02, name
