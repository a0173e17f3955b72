"""A request alone and in company: its result must not change by a bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from .case import Case, raw_bytes


@dataclass(frozen=True)
class Company:
    """One request's call alone, the same request among others, and where its results lie in each.

    rows: by output (or in-out), the places along its first axis in `alone` and in `among`: int64, of equal length.
    """

    name: str
    alone: Case
    among: Case
    rows: Mapping[str, tuple[Tensor, Tensor]]


def differences(company: Company, alone: Mapping[str, Tensor], among: Mapping[str, Tensor]) -> list[str]:
    """What differs between two outcomes' tensors, in words; empty when the request's results are equal in bits."""
    found = []
    for name, (rows_alone, rows_among) in company.rows.items():
        one, other = alone[name].cpu(), among[name].cpu()  # not every type can be indexed on a GPU
        got, want = raw_bytes(one[rows_alone]), raw_bytes(other[rows_among])
        if got.numel() != want.numel():
            raise ValueError(
                f"{company.name}: {name}: {len(rows_alone)} rows alone, {len(rows_among)} in company"
            )
        count = int((got != want).view(-1, one.element_size()).any(dim=1).sum())
        if count:
            elements = got.numel() // one.element_size()
            found.append(f"{company.name}: {name}: {count} of {elements} elements differ in company")
    return found
