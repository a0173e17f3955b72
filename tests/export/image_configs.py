"""Tiny configs of image models."""

from __future__ import annotations

from typing import Any

import transformers

NAMES = ("cat", "dog", "ship", "gull")
LABELS = {"id2label": dict(enumerate(NAMES)), "label2id": {name: place for place, name in enumerate(NAMES)}}
VIT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
TOWER = {**VIT, "num_channels": 3}
TEXT = {**VIT, "vocab_size": 99, "max_position_embeddings": 16, "eos_token_id": 98, "bos_token_id": 97}
RESNET: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 32], "depths": [1] * 4}
CONVNEXT: dict[str, Any] = {
    "num_stages": 2,
    "hidden_sizes": [8, 16],
    "depths": [1, 1],
    "layer_scale_init_value": 1.0,
}
DETECTOR: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "num_queries": 7,
    **LABELS,
}


def _resnet_backbone() -> Any:
    return transformers.ResNetConfig(**RESNET, layer_type="basic", out_features=["stage4"])


def backboned(config: str, **settings: Any) -> Any:
    """A config with that backbone, nothing of it downloaded."""
    return getattr(transformers, config)(
        use_timm_backbone=False,
        backbone=None,
        backbone_config=_resnet_backbone(),
        use_pretrained_backbone=False,
        **settings,
    )


def rt_detr() -> Any:
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 32, 32],
        depths=[1] * 4,
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    return transformers.RTDetrConfig(
        backbone_config=backbone,
        encoder_hidden_dim=32,
        encoder_in_channels=[16, 32, 32],
        encoder_ffn_dim=48,
        encoder_attention_heads=2,
        encoder_layers=1,
        d_model=32,
        num_queries=12,
        decoder_in_channels=[32, 32, 32],
        decoder_ffn_dim=48,
        decoder_layers=1,
        decoder_attention_heads=2,
        hidden_expansion=0.5,
        anchor_image_size=[64, 64],
        **LABELS,
    )


def clip() -> Any:
    return transformers.CLIPConfig(text_config=TEXT, vision_config=TOWER, projection_dim=16)


def siglip() -> Any:
    return transformers.SiglipConfig(text_config=TEXT, vision_config=TOWER)
