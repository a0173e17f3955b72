"""Which profile of an engine a decode step uses."""

from __future__ import annotations

import pytest

from model_repo.runtime.device_engine import decode_profile

NAMES = ("decode_16", "decode_1", "decode_8", "decode", "prefill", "mixed")


@pytest.mark.parametrize(
    ("sequences", "name"),
    [(1, "decode_1"), (2, "decode_8"), (8, "decode_8"), (9, "decode_16"), (16, "decode_16"), (17, "decode")],
)
def test_it_is_the_narrowest_that_holds_it(sequences: int, name: str) -> None:
    assert decode_profile(NAMES, sequences) == name


def test_an_engine_may_have_one_for_all() -> None:
    assert decode_profile(("decode", "prefill"), 3) == "decode"
