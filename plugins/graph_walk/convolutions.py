"""Convolutions and pools of one to three dimensions, by torch."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional

from model_repo.runtime.errors import BadInput

from .description import Node

_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_MAX_POOLS = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_AVERAGE_POOLS = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


def convolution(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Conv. Padding that differs between the two sides is put around `x` first."""
    dims = x.dim() - 2
    sides = _sides(node, dims)
    before, after = sides[:dims], sides[dims:]
    if before != after:
        around = [size for pair in zip(reversed(before), reversed(after), strict=True) for size in pair]
        x, before = functional.pad(x, around), [0] * dims
    return _CONVOLUTIONS[dims](
        x,
        weight,
        bias,
        stride=_sizes(node, "strides", dims),
        padding=before,
        dilation=_sizes(node, "dilations", dims),
        groups=node.integer("group", 1),
    )


def max_pool(node: Node, x: Tensor) -> Tensor:
    """MaxPool with equal padding on both sides."""
    settings = _window(node, x.dim() - 2)
    pooled: Tensor = _MAX_POOLS[x.dim() - 2](x, **settings, dilation=_sizes(node, "dilations", x.dim() - 2))
    return pooled


def average_pool(node: Node, x: Tensor) -> Tensor:
    """AveragePool with equal padding on both sides."""
    settings = _window(node, x.dim() - 2)
    pooled: Tensor = _AVERAGE_POOLS[x.dim() - 2](
        x, **settings, count_include_pad=bool(node.integer("count_include_pad", 0))
    )
    return pooled


def global_average_pool(node: Node, x: Tensor) -> Tensor:
    """Means over all axes but the first two, which stay as axes of size 1."""
    return x.mean(dim=tuple(range(2, x.dim())), keepdim=True)


def _window(node: Node, dims: int) -> dict[str, Any]:
    sides = _sides(node, dims)
    if sides[:dims] != sides[dims:] or len(node.outputs) > 1:
        raise BadInput(f"{node.words} pads its sides unequally or gives indices, which is not walked")
    return {
        "kernel_size": list(node.attributes["kernel_shape"]),
        "stride": _sizes(node, "strides", dims),
        "padding": sides[:dims],
        "ceil_mode": bool(node.integer("ceil_mode", 0)),
    }


def _sizes(node: Node, name: str, dims: int) -> list[int]:
    return list(node.attributes.get(name) or [1] * dims)


def _sides(node: Node, dims: int) -> list[int]:
    """Padding: of all first sides, then of all last ones."""
    if node.attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise BadInput(f"{node.words} computes its padding (auto_pad), which is not walked")
    return list(node.attributes.get("pads") or [0] * 2 * dims)
