"""How large tensors may be, found before a builder runs for minutes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import onnx_ir as ir

from model_repo.runtime.errors import BadInput
from pipeline.fuse.matching import dims

from .profiles import Profile

MAX_ELEMENTS = 2**31 - 1
"""Elements of a tensor: both builders count them in 32 bits."""


class _Large(NamedTuple):
    tensor: str
    shape: tuple[int, ...]
    profile: str


def check_sizes(model: ir.Model, profiles: Sequence[Profile]) -> None:
    """Raises BadInput for a tensor of more than 2^31 - 1 elements: the one with the most, its shape and its profile.

    Sizes known only at run time count as the most that a profile gives an input's; values whose shape nobody knows
    are left to the builder.
    """
    found = [*_constants(model)]
    for profile in profiles:
        sizes = _most(model, profile)
        values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
        for value in values:
            shape = [
                sizes.get(size, size) if isinstance(size, str) else size for size in dims(value) or ("",)
            ]
            if all(isinstance(size, int) for size in shape):
                found.append(_Large(value.name or "", tuple(map(int, shape)), profile.name))
    large = max(found, key=lambda item: math.prod(item.shape), default=None)
    if large is None or math.prod(large.shape) <= MAX_ELEMENTS:
        return
    where = f" in profile {large.profile!r}" if large.profile else ""
    raise BadInput(
        f"tensor {large.tensor!r} of shape {list(large.shape)}{where} has {math.prod(large.shape)} elements; TensorRT "
        f"takes at most {MAX_ELEMENTS}. Lower --max-batch, --token-budget, --max-length, --kv-cache-bytes or --max-size"
    )


def _constants(model: ir.Model) -> Iterator[_Large]:
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            yield _Large(value.name or "", tuple(value.const_value.shape.numpy()), "")


def _most(model: ir.Model, profile: Profile) -> Mapping[str, int]:
    """The most of each size that has a name, from the inputs."""
    sizes: dict[str, int] = {}
    for value in model.graph.inputs:
        most = profile.shapes[value.name or ""].most
        for name, size in zip(dims(value) or (), most, strict=True):
            if isinstance(name, str):
                sizes[name] = max(size, sizes.get(name, 0))
    if "batch" in sizes and "length" in sizes:
        sizes.setdefault("tokens", sizes["batch"] * sizes["length"])  # of the linear contract
    return sizes
