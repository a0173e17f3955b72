"""Optimization profiles, by name, from an engine's limits: the shapes that an engine is tuned for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from model_repo.runtime.errors import BadInput

Shape = tuple[int, ...]
Dims = Sequence[int | str]
"""Fixed sizes, and names of sizes known only at run time."""


class Sizes(NamedTuple):
    """A size known only at run time: the least, the one to tune for, and the most."""

    least: int
    usual: int
    most: int


class Shapes(NamedTuple):
    """The shapes of one input in a profile."""

    least: Shape
    usual: Shape
    most: Shape


@dataclass(frozen=True)
class Profile:
    """One kind of step. `shapes`: of each input, in the order of the network."""

    name: str
    shapes: Mapping[str, Shapes]


def linear_profiles(inputs: Mapping[str, Dims], max_batch: int, token_budget: int) -> tuple[Profile, Profile]:
    """`decode` (one token of each of up to max_batch slots) and `prefill` (up to token_budget tokens of one slot).

    `inputs` are those of a graph under the linear contract, whose sizes are called batch, length and selected.
    Both in one engine get attention kernels of their own.
    """
    slots, one = Sizes(1, max_batch, max_batch), Sizes(1, 1, 1)
    chunk = Sizes(1, token_budget, token_budget)
    return (
        profile("decode", inputs, {"batch": slots, "length": one, "selected": slots}),
        profile("prefill", inputs, {"batch": one, "length": chunk, "selected": one}),
    )


def profile(name: str, inputs: Mapping[str, Dims], sizes: Mapping[str, Sizes]) -> Profile:
    """A profile from the range of each named size. Raises BadInput for a size without one."""
    for given, shape in inputs.items():
        for size in shape:
            if isinstance(size, str) and size not in sizes:
                raise BadInput(
                    f"input {given!r} has the size {size!r}, which profile {name!r} says nothing of; it knows "
                    f"{', '.join(sizes)}"
                )
    return Profile(name, {given: _shapes(shape, sizes) for given, shape in inputs.items()})


def _shapes(shape: Dims, sizes: Mapping[str, Sizes]) -> Shapes:
    ranges = [sizes[size] if isinstance(size, str) else Sizes(size, size, size) for size in shape]
    return Shapes(
        tuple(size.least for size in ranges),
        tuple(size.usual for size in ranges),
        tuple(size.most for size in ranges),
    )
