"""What only sm_90 has, as the kernels' wrappers and the emulator state it: TMA, mbarrier, wgmma, named barriers.

The programs check each against its definition (products against a plain matrix product, boxes element by element), and
plant faults, each of which must be seen: by the emulator, or in the numbers.
"""

from __future__ import annotations

import pytest

from .programs import results

WORDS = {
    "fault ring: never freed": "deadlock",
    "fault ring: wrong parity": "deadlock",
    "fault ring: uninitialised": "mbarrier: not initialised",
    "fault ring: not published": "without fence.mbarrier_init",
    "fault turns: one is forgotten": "deadlock",
    "fault wgmma: no fence": "no wgmma.fence",
    "fault wgmma: no proxy fence": "without fence.proxy.async",
    "fault wgmma: read early": "a product is wrong",
    "fault wgmma: written early": "accumulators were written",
    "fault wgmma: operand overwritten": "a product is wrong",
    "fault wgmma: threads differ": "issue different ones",
    "fault wgmma: beyond shared memory": "dynamic shared memory",
    "fault wgmma: A rewritten": "registers of A were written",
    "fault setmaxnreg: half a warpgroup": "not all threads of a warpgroup",
    "fault setmaxnreg: too many registers": "a multiprocessor has 65536",
    "fault named barrier: left half full": "was left with",
    "fault bulk store: no proxy fence": "without fence.proxy.async",
    "fault bulk store: not waited for": "a bulk store was not waited for",
}
"""What must be said, where only one thing can be seen."""


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(("program", "checks"), [("sm90_primitives", 16), ("sm90_wgmma", 27)])
def test_each_does_what_its_definition_says_and_each_fault_is_seen(
    program: str, checks: int, seed: int
) -> None:
    found = results(program, "plain", seed)
    assert len(found) == checks
    wrong = {name: words for name, words in found.items() if words != "ok"}
    assert [name for name in wrong if not name.startswith("fault")] == []
    missed = {name for name in found if name.startswith("fault")} - wrong.keys()
    # A stage that is freed too early is overwritten under some orders of the threads; see below.
    assert missed <= {"fault ring: freed early"}
    said = {name: words for name, words in WORDS.items() if name in found}
    assert {name: found[name] for name, words in said.items() if words not in found[name]} == {}


def test_every_fault_that_words_are_listed_for_is_planted() -> None:
    planted = {*results("sm90_primitives", "plain", 1), *results("sm90_wgmma", "plain", 1)}
    assert planted >= WORDS.keys()


def test_order_of_threads_does_not_hide_a_stage_that_is_freed_early() -> None:
    assert results("sm90_primitives", "tsan", 1, "mbarrier ring") == {"mbarrier ring": "ok"}
    early = "fault ring: freed early"
    assert "data race" in results("sm90_primitives", "tsan", 1, early)[early]
    for name in ("tensor boxes", "named barriers"):
        assert results("sm90_primitives", "tsan", 2, name) == {name: "ok"}
    assert results("sm90_wgmma", "tsan", 2, "wgmma half 64") == {"wgmma half 64": "ok"}


@pytest.mark.parametrize("flavour", ["plain", "asan", "tsan"])
def test_values_of_8_bits_are_transposed(flavour: str) -> None:
    found = results("sm90_transpose", flavour, 3)
    assert len(found) == 4
    assert {name: words for name, words in found.items() if words != "ok"} == {}
