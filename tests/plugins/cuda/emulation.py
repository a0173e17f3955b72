"""How the tests of an operator run its cases on the emulator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import pytest

from plugins.cuda.case import Case, Scale
from plugins.cuda.company import Company, differences
from plugins.cuda.emulated import Build, check, run

SMALL_UNDER_ASAN = pytest.mark.parametrize(
    ("flavour", "scale", "seed"), [("plain", "small", 1), ("asan", "small", 2), ("tsan", "quick", 3)]
)
QUICK_UNDER_ASAN = pytest.mark.parametrize(
    ("flavour", "scale", "seed"), [("plain", "small", 1), ("asan", "quick", 2), ("tsan", "quick", 3)]
)
"""For operators with many forms: the small cases take long under the sanitizers."""


class Checks(Protocol):
    """A module of plugins/checks."""

    def cases(self, scale: Scale, seed: int) -> Iterator[Case]:
        """See `plugins.checks`."""


class ChecksOfRequests(Checks, Protocol):
    """One whose operator has requests, or rows, that must not depend on each other."""

    def companies(self, seed: int, requests: int) -> Iterator[Company]:
        """See `plugins.cuda.company`."""


def wrong(
    checks: Checks,
    operators: tuple[str, ...],
    flavour: str,
    scale: str,
    seed: int,
    *,
    half_suffices: bool = False,
) -> dict[str, list[str]]:
    """What is wrong with the cases, by case; {} when nothing is.

    half_suffices: the quick cases are of float16 alone, so nothing else is compiled for them.
    """
    defines = ("SLIPWAY_ONLY_FLOAT16",) if half_suffices and scale == "quick" else ()
    return check(checks.cases(Scale(scale), seed), Build(flavour, operators, defines=defines), seed=seed)


def dependent(checks: ChecksOfRequests, operators: tuple[str, ...], requests: int = 5) -> list[str]:
    """In which companies a request's bits are not those of the request alone, in words; [] when in none."""
    build = Build("plain", operators)
    found = []
    for company in checks.companies(seed=4, requests=requests):
        alone, among = run([company.alone, company.among], build)
        found += differences(company, alone.tensors, among.tensors)
    return found
