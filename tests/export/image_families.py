"""Tiny random checkpoints of image models, each saved with an image processor of its family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from tests.export.image_configs import (
    CONVNEXT,
    DETECTOR,
    LABELS,
    RESNET,
    TOWER,
    VIT,
    backboned,
    clip,
    rt_detr,
    siglip,
)
from tests.export.tiny_models import sharpened


@dataclass(frozen=True)
class Family:
    """`model`: the class in transformers and its config; `processor`: the class and its settings; `steps` in words."""

    name: str
    task: str
    model: Callable[[], tuple[str, Any]]
    processor: str
    settings: dict[str, Any]
    steps: str
    wide: bool = False

    def checkpoint(self, folder: Path) -> Path:
        """Written to `folder`, always the same."""
        torch.manual_seed(2)
        kind, config = self.model()
        _lively(sharpened(getattr(transformers, kind)(config))).save_pretrained(folder)
        getattr(transformers, f"{self.processor}Pil")(**self.settings).save_pretrained(folder)
        return folder


def _lively(model: Any) -> Any:
    """`model` with convolutions that keep the size of their values: at the usual scale images fade on their way."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.normal_(0.0, (2 / module.weight[0].numel()) ** 0.5)
        if isinstance(module, nn.BatchNorm2d):
            module.weight.fill_(1.0)
        if isinstance(module, nn.BatchNorm1d):
            module.weight.fill_(0.5)
    return model


SQUARE = {"size": {"height": 32, "width": 32}}
CROPPED = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}
BOUNDED = {"size": {"shortest_edge": 64, "longest_edge": 96}}
FAMILIES = (
    Family(
        "ResNet",
        "classification",
        lambda: ("ResNetForImageClassification", transformers.ResNetConfig(**RESNET, **LABELS)),
        "ConvNextImageProcessor",
        {"size": {"shortest_edge": 64}, "crop_pct": 0.8},
        "shorter side to 80, centre 64 x 64",
    ),
    Family(
        "ConvNeXt",
        "classification",
        lambda: (
            "ConvNextForImageClassification",
            transformers.ConvNextConfig(**CONVNEXT, **LABELS),
        ),
        "ConvNextImageProcessor",
        {"size": {"shortest_edge": 384}},
        "to 384 x 384, bicubic",
    ),
    Family(
        "ViT",
        "classification",
        lambda: ("ViTForImageClassification", transformers.ViTConfig(**VIT, **LABELS)),
        "ViTImageProcessor",
        SQUARE,
        "to 32 x 32, bilinear",
    ),
    Family(
        "DeiT, labels that do not exclude each other",
        "classification",
        lambda: (
            "DeiTForImageClassification",
            transformers.DeiTConfig(**VIT, **LABELS, problem_type="multi_label_classification"),
        ),
        "DeiTImageProcessor",
        {"size": {"height": 40, "width": 36}, "crop_size": {"height": 32, "width": 32}},
        "to 40 x 36, centre 32 x 32",
        wide=True,
    ),
    Family(
        "Swin",
        "classification",
        lambda: (
            "SwinForImageClassification",
            transformers.SwinConfig(
                image_size=32,
                patch_size=4,
                embed_dim=16,
                depths=[1, 1],
                num_heads=[2, 2],
                window_size=4,
                **LABELS,
            ),
        ),
        "ViTImageProcessor",
        {**SQUARE, "resample": 3},
        "to 32 x 32, bicubic",
        wide=True,
    ),
    Family(
        "LeViT",
        "classification",
        lambda: (
            "LevitForImageClassification",
            transformers.LevitConfig(
                image_size=64,
                hidden_sizes=[16, 32, 48],
                num_attention_heads=[2, 2, 2],
                depths=[1, 1, 1],
                key_dim=[8, 8, 8],
                down_ops=[["Subsample", 8, 2, 4, 2, 2], ["Subsample", 8, 4, 4, 2, 2]],
                **LABELS,
            ),
        ),
        "LevitImageProcessor",
        {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}},
        "shorter side to 73 (64 x 256 / 224), centre 64 x 64",
        wide=True,
    ),
    Family(
        "EfficientNet",
        "classification",
        lambda: (
            "EfficientNetForImageClassification",
            transformers.EfficientNetConfig(
                image_size=32,
                width_coefficient=0.2,
                depth_coefficient=0.1,
                in_channels=[32, 16, 24],
                out_channels=[16, 24, 32],
                kernel_sizes=[3, 3, 3],
                strides=[1, 2, 2],
                num_block_repeats=[1, 1, 1],
                expand_ratios=[1, 2, 2],
                depthwise_padding=[],
                hidden_dim=256,
                **LABELS,
            ),
        ),
        "EfficientNetImageProcessor",
        SQUARE,
        "to 32 x 32, normalized twice",
        wide=True,
    ),
    Family(
        "ConvNeXt, grey",
        "classification",
        lambda: (
            "ConvNextForImageClassification",
            transformers.ConvNextConfig(num_channels=1, **CONVNEXT, **LABELS),
        ),
        "MobileNetV2ImageProcessor",
        {
            "size": {"shortest_edge": 40},
            "crop_size": {"height": 48, "width": 48},
            "image_mean": [0.4],
            "image_std": [0.3],
        },
        "shorter side to 40, zeros up to 48 x 48",
        wide=True,
    ),
    Family(
        "CLIP, image tower",
        "embedding",
        lambda: (
            "CLIPVisionModelWithProjection",
            transformers.CLIPVisionConfig(**TOWER, projection_dim=16),
        ),
        "CLIPImageProcessor",
        CROPPED,
        "shorter side to 36, centre 32 x 32, over white",
    ),
    Family(
        "CLIP, of both towers that of images",
        "embedding",
        lambda: ("CLIPModel", clip()),
        "CLIPImageProcessor",
        CROPPED,
        "shorter side to 36, centre 32 x 32, over white",
        wide=True,
    ),
    Family(
        "SigLIP, image tower",
        "embedding",
        lambda: ("SiglipVisionModel", transformers.SiglipVisionConfig(**TOWER)),
        "SiglipImageProcessor",
        SQUARE,
        "to 32 x 32, bicubic, over white",
    ),
    Family(
        "SigLIP, of both towers that of images",
        "embedding",
        lambda: ("SiglipModel", siglip()),
        "SiglipImageProcessor",
        SQUARE,
        "to 32 x 32, bicubic, over white",
        wide=True,
    ),
    Family(
        "DINOv2",
        "embedding",
        lambda: (
            "Dinov2Model",
            transformers.Dinov2Config(
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                mlp_ratio=2,
                image_size=32,
                patch_size=8,
            ),
        ),
        "BitImageProcessor",
        CROPPED,
        "shorter side to 36, centre 32 x 32, over white",
        wide=True,
    ),
    Family(
        "DETR",
        "detection",
        lambda: ("DetrForObjectDetection", backboned("DetrConfig", **DETECTOR)),
        "DetrImageProcessor",
        BOUNDED,
        "shorter side to 64, longer up to 96; each image in its own size",
        wide=True,
    ),
    Family(
        "DETR, padded",
        "detection",
        lambda: ("DetrForObjectDetection", backboned("DetrConfig", **DETECTOR)),
        "DetrImageProcessor",
        {**BOUNDED, "pad_size": {"height": 96, "width": 96}},
        "shorter side to 64, longer up to 96, zeros and mask up to 96 x 96",
        wide=True,
    ),
    Family(
        "Conditional DETR",
        "detection",
        lambda: ("ConditionalDetrForObjectDetection", backboned("ConditionalDetrConfig", **DETECTOR)),
        "ConditionalDetrImageProcessor",
        BOUNDED,
        "shorter side to 64, longer up to 96; each image in its own size",
        wide=True,
    ),
    Family(
        "RT-DETR",
        "detection",
        lambda: ("RTDetrForObjectDetection", rt_detr()),
        "RTDetrImageProcessor",
        {"size": {"height": 64, "width": 64}},
        "to 64 x 64",
        wide=True,
    ),
)
REFUSED = (
    (
        Family(
            "YOLOS",
            "detection",
            lambda: (
                "YolosForObjectDetection",
                transformers.YolosConfig(**{**VIT, "image_size": [64, 96]}, num_detection_tokens=7, **LABELS),
            ),
            "YolosImageProcessor",
            BOUNDED,
            "sides that are multiples of 16",
        ),
        "YolosImageProcessorPil gives other pixels than the steps that are known",
        "its processor makes sides multiples of 16",
    ),
    (
        Family(
            "MobileViT",
            "classification",
            lambda: (
                "MobileViTForImageClassification",
                transformers.MobileViTConfig(image_size=32, hidden_sizes=[16, 16, 16], **LABELS),
            ),
            "MobileViTImageProcessor",
            {},
            "BGR",
        ),
        "has the setting 'do_flip_channel_order'",
        "its processor has the setting `do_flip_channel_order`",
    ),
    (
        Family(
            "SigLIP 2 of any resolution, image tower",
            "embedding",
            lambda: ("Siglip2VisionModel", transformers.Siglip2VisionConfig(**{**TOWER, "image_size": None})),
            "Siglip2ImageProcessor",
            {},
            "patches",
        ),
        "has the setting '(max_num_patches|patch_size)'",
        "its processor has the setting `max_num_patches`",
    ),
)
"""Families, what a refusal says, and its reason in short."""


def family(name: str) -> Family:
    """The family of that name."""
    (found,) = (each for each in FAMILIES if each.name == name)
    return found
