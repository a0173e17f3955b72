"""A call of an operator with what must come out of it, whoever executes it: the emulator or a GPU."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

POISON = 0xFF
"""Every byte of memory that an operator has not written yet: NaN in all floating-point formats, -1 in integers."""


class Scale(enum.Enum):
    """How much a list of cases asks for: a second of emulation, half a minute of it, or a GPU."""

    QUICK = "quick"
    SMALL = "small"
    FULL = "full"


@dataclass(frozen=True)
class Case:
    """One call and its result.

    tensors: contents by the names of the operator's description; an output that is listed starts with that
    content, any other starts poisoned. expected: every output and in-out, whole. Inputs must stay as they are.
    tolerance: of ||got - expected|| / ||expected||; 0 means equal bits. tolerances: by output, where one differs.
    error: the call must be refused with a message that holds these words.
    least_compute_capability: of devices that the call is for, 89 for 8.9; others leave the case out.
    """

    name: str
    operator: str
    tensors: Mapping[str, Tensor]
    expected: Mapping[str, Tensor]
    attributes: Mapping[str, float] = field(default_factory=dict)
    tolerance: float = 0.0
    tolerances: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None
    least_compute_capability: int = 0

    def start(self) -> dict[str, Tensor]:
        """All tensors as they are before the call: contents, and poisoned outputs (not copies of `tensors`)."""
        outputs = {
            name: poisoned(value.shape, value.dtype)
            for name, value in self.expected.items()
            if name not in self.tensors
        }
        return {**self.tensors, **outputs}


@dataclass(frozen=True)
class Outcome:
    """What a call left behind: its code (0 is success) and message, and every tensor after it."""

    code: int
    message: str
    tensors: Mapping[str, Tensor]


def poisoned(shape: torch.Size | tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor whose every byte is `POISON`."""
    count = math.prod(shape)
    raw = torch.full((count * dtype.itemsize,), POISON, dtype=torch.uint8)
    if dtype == torch.bool:
        return raw.view(torch.bool).reshape(shape)
    return raw.view(dtype).reshape(shape)


def raw_bytes(tensor: Tensor) -> Tensor:
    """The bytes of a tensor's elements, uint8 [count]."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def relative_error(got: Tensor, want: Tensor) -> float:
    """||got - want|| / ||want|| in float64; infinite when an element is not finite where `want` is.

    Elements where `want` is infinite or NaN must be the same in `got`.
    """
    a, b = got.double(), want.double()
    finite = torch.isfinite(b)
    if not torch.equal(torch.nan_to_num(a[~finite]), torch.nan_to_num(b[~finite])):
        return math.inf
    if not bool(torch.isfinite(a[finite]).all()):
        return math.inf
    difference = float(torch.linalg.vector_norm(a[finite] - b[finite]))
    norm = float(torch.linalg.vector_norm(b[finite]))
    return difference / norm if norm > 0 else (0.0 if difference == 0 else math.inf)


def faults(case: Case, outcome: Outcome) -> list[str]:
    """What is wrong with an outcome, in words; empty when all is right."""
    if case.error is not None:
        if outcome.code == 0:
            return [f"was accepted; it must be refused with {case.error!r}"]
        if case.error not in outcome.message:
            return [f"says {outcome.message!r}; it must say {case.error!r}"]
        return []
    if outcome.code != 0:
        return [f"code {outcome.code}: {outcome.message}"]
    found = []
    for name, want in case.expected.items():
        got = outcome.tensors[name]
        tolerance = case.tolerances.get(name, case.tolerance)
        if tolerance == 0.0:
            wrong = raw_bytes(got) != raw_bytes(want)
            if bool(wrong.any()):
                first = int(wrong.nonzero()[0]) // want.dtype.itemsize
                count = int(wrong.reshape(-1, want.dtype.itemsize).any(dim=1).sum())
                place = [int(i) for i in torch.unravel_index(torch.tensor(first), want.shape)]
                found.append(
                    f"{name}: {count} of {want.numel()} elements differ, the first at {place}: "
                    f"{got[tuple(place)].item()} instead of {want[tuple(place)].item()}"
                )
        elif not (error := relative_error(got, want)) <= tolerance:
            found.append(f"{name}: relative error {error:.3g}, allowed {tolerance:.3g}")
    for name, value in case.tensors.items():
        if name not in case.expected and not torch.equal(raw_bytes(outcome.tensors[name]), raw_bytes(value)):
            found.append(f"{name} is an input and was written to")
    return found
