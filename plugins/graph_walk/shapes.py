"""Standard operators that move elements and compute shapes; those on shapes run on the CPU."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from model_repo.runtime.errors import BadInput

from .description import Node


def shape(node: Node, x: Tensor) -> Tensor:
    """int64 [axes from `start` to `end`], on the CPU."""
    end = node.attributes.get("end")
    return torch.tensor(list(x.shape)[node.integer("start", 0) : end], dtype=torch.int64)


def reshape(node: Node, x: Tensor, sizes: Tensor) -> Tensor:
    """0 keeps the axis of that place, unless `allowzero`; -1 is what is left."""
    wanted = sizes.tolist()
    if not node.integer("allowzero", 0):
        wanted = [x.shape[axis] if size == 0 else size for axis, size in enumerate(wanted)]
    return x.reshape(wanted)


def flatten(node: Node, x: Tensor) -> Tensor:
    """Two axes: those before `axis`, and the others."""
    axis = node.integer("axis", 1)
    return x.reshape(math.prod(x.shape[:axis]), -1)


def expand(node: Node, x: Tensor, sizes: Tensor) -> Tensor:
    """`x` repeated along axes of size 1; a size of 1 keeps what `x` has."""
    wanted = sizes.tolist()
    rank = max(x.dim(), len(wanted))
    given, wanted = ([1] * (rank - len(some)) + list(some) for some in (x.shape, wanted))
    return x.expand([old if new == 1 else new for old, new in zip(given, wanted, strict=True)])


def unsqueeze(node: Node, x: Tensor, axes: Tensor) -> Tensor:
    """New axes of size 1, at places of the result."""
    rank = x.dim() + len(axes)
    for axis in sorted(place % rank for place in axes.tolist()):
        x = x.unsqueeze(axis)
    return x


def squeeze(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Without these axes, or without all of size 1."""
    return x.squeeze() if axes is None else x.squeeze(tuple(axes.tolist()))


def transpose(node: Node, x: Tensor) -> Tensor:
    """Axes in the order of `perm`; without it, reversed."""
    return x.permute(node.attributes.get("perm") or tuple(reversed(range(x.dim()))))


def concat(node: Node, *inputs: Tensor) -> Tensor:
    """Along `axis`."""
    return torch.cat(inputs, node.integer("axis", 0))


def split(node: Node, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    """Along `axis`, by given sizes or into equal parts, the last of which may be smaller."""
    axis = node.integer("axis", 0)
    part = -(-x.shape[axis] // len(node.outputs))
    parts = [min(part, x.shape[axis] - part * place) for place in range(len(node.outputs))]
    return tuple(torch.split_with_sizes(x, parts if sizes is None else sizes.tolist(), axis))


def slices(
    node: Node,
    x: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    """Parts of axes. Raises BadInput for steps backwards, which torch has not."""
    first, last = starts.tolist(), ends.tolist()
    over = list(range(len(first))) if axes is None else axes.tolist()
    strides = [1] * len(first) if steps is None else steps.tolist()
    if min(strides) < 1:
        raise BadInput(f"{node.words} steps by {strides}; only steps forward are walked")
    places = [slice(None)] * x.dim()
    for axis, begin, end, stride in zip(over, first, last, strides, strict=True):
        places[axis] = slice(begin, min(end, x.shape[axis]), stride)
    return x[tuple(places)]


def gather(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    """`x` at `indices` of any shape along `axis`; negative ones count from the end."""
    axis = node.integer("axis", 0) % x.dim()
    # A list of places, since torch reads a single one on the host.
    place: tuple[slice | Tensor, ...] = (*[slice(None)] * axis, indices.reshape(-1))
    picked = x[place]
    return picked.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def constant_of_shape(node: Node, sizes: Tensor) -> Tensor:
    """A tensor of one value, on the CPU."""
    value = node.attributes.get("value", torch.zeros(1))
    return torch.full(tuple(sizes.tolist()), value.item(), dtype=value.dtype)


def indices_range(node: Node, start: Tensor, limit: Tensor, step: Tensor) -> Tensor:
    """start, start + step, ... below limit, on the CPU."""
    return torch.arange(start.item(), limit.item(), step.item(), dtype=start.dtype)
