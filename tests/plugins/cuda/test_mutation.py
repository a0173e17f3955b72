"""Faults that are planted in the kernels are caught: what was recorded of all of them, and a sample again."""

from __future__ import annotations

import random

import pytest

from .mutation import COMMAND, LEAST_CAUGHT, Fault, Suite, Trial, Verdict, planted, recorded, suite_names

SAMPLE = 1
"""Faults of each suite that are planted again."""


def verdicts(suite: Suite) -> list[Verdict]:
    """What is recorded for the sources as they are; where these are newer, the test skips and says how to record."""
    result = recorded().get(suite.name)
    again = f"; run: {COMMAND} {suite.name}"
    if result is None:
        pytest.skip(f"no verdicts on the faults of {suite.name} are recorded{again}")
    found = [Verdict(**entry) for entry in result["faults"]]  # type: ignore[attr-defined]
    if [v.name for v in found] != [fault.name for fault in suite.faults]:
        pytest.skip(f"the faults of {suite.name} have changed since they were recorded{again}")
    changed = [file for file, sha in suite.sources().items() if result["sources"].get(file) != sha]  # type: ignore[attr-defined]
    if changed:
        pytest.skip(f"{', '.join(changed)} changed since the verdicts on {suite.name} were recorded{again}")
    return found


@pytest.mark.parametrize("name", suite_names())
def test_nearly_all_faults_are_caught(name: str) -> None:
    found = verdicts(Suite.load(name))
    survivors = [v.name for v in found if not v.caught]
    assert len(survivors) <= (1 - LEAST_CAUGHT) * len(found), f"survivors: {survivors}"


@pytest.mark.parametrize("name", suite_names())
def test_a_sample_is_caught_again(name: str) -> None:
    suite = Suite.load(name)
    result = recorded().get(name)
    if result is None:
        pytest.skip("nothing is recorded; the test above fails")
    known = {entry["name"]: Verdict(**entry) for entry in result["faults"]}  # type: ignore[attr-defined]
    caught = [f for f in suite.faults if f.name in known and known[f.name].flavour in ("plain", "tsan")]
    trial = Trial(suite, suite.cases(), {"plain": 120.0, "tsan": 120.0})
    for fault in random.Random(7).sample(caught, SAMPLE):
        before = known[fault.name]
        assert trial.judge(fault, [before.flavour], [before.seed]).caught, f"{fault.name} survives"


def test_a_fault_must_name_its_place() -> None:
    with pytest.raises(ValueError, match="holds its old text 2 times, not once"):
        Fault("twice", "x.cuh", "a", "b").applied("a a")
    with pytest.raises(ValueError, match="holds its old text 0 times, not once"):
        Fault("never", "x.cuh", "c", "b").applied("a a")


def test_a_fault_is_planted_beside_the_real_sources() -> None:
    fault = Fault("no guard", "include/slipway/errors.hpp", "#pragma once", "#pragma twice")
    with planted(fault) as folder:
        assert "#pragma twice" in (folder / fault.file).read_text()
        assert (folder / "include/slipway/ptx.cuh").is_symlink()
