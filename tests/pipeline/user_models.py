"""Functions as users write them for `package.module:function`: models that are neither decoder nor encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline import ModuleExample


class Scorer(nn.Module):
    """Inputs and outputs of several types; a row does not depend on the others."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)
        self.embedding = nn.Embedding(10, 6)

    def forward(self, features: Tensor, kind: Tensor) -> dict[str, Tensor]:
        """features float32 [batch, 6], kind int64 [batch] below 10."""
        logits = self.linear(features + self.embedding(kind))
        return {"scores": logits.softmax(-1), "best": logits.argmax(-1), "likely": logits.softmax(-1) > 0.3}


def scorer() -> ModuleExample:
    """The batch is dynamic."""
    torch.manual_seed(3)
    return ModuleExample(
        Scorer(),
        {"features": torch.randn(3, 6), "kind": torch.tensor([1, 9, 0])},
        dynamic={"features": {0: "batch"}, "kind": {0: "batch"}},
        limits={"batch": (1, 32)},
    )


class Centered(nn.Module):
    """Every row depends on all others."""

    def forward(self, points: Tensor) -> Tensor:
        """points float32 [points, 3]."""
        return points - points.mean(dim=0)


def centered() -> ModuleExample:
    """The number of points is dynamic, and no batch."""
    torch.manual_seed(4)
    return ModuleExample(Centered(), (torch.randn(5, 3),), dynamic={"points": {0: "count"}})


def resnet() -> ModuleExample:
    """transformers' ResNet: batch, height and width are dynamic."""
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=5
    )
    model = ResNetForImageClassification(config)
    with torch.no_grad():
        for (
            name,
            buffer,
        ) in model.named_buffers():  # a norm that has seen data, so that folding it can go wrong
            if name.endswith(("running_mean", "running_var")):
                buffer.uniform_(0.5, 1.5)
    return ModuleExample(
        model,
        {"pixel_values": torch.randn(1, 3, 32, 32)},
        dynamic={"pixel_values": {0: "batch", 2: "height", 3: "width"}},
        limits={"height": (32, 64), "width": (32, 64)},
    )


def vit() -> ModuleExample:
    """transformers' ViT: the batch is dynamic."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        image_size=32,
        patch_size=8,
        num_labels=5,
        initializer_range=0.4,  # so that attention tells patches apart
    )
    images = torch.randn(2, 3, 32, 32)
    return ModuleExample(
        ViTForImageClassification(config), {"pixel_values": images}, dynamic={"pixel_values": {0: "batch"}}
    )
