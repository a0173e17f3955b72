"""Pieces between generate and postprocess."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from model_repo.backends.wire import PROBE, Piece, pack, unpack

counts = st.integers(0, 2**32 - 1)
pieces = st.builds(
    Piece,
    stream=st.integers(0, 2**64 - 1),
    check=st.booleans(),
    num_prompt_tokens=counts,
    num_new_tokens=counts,
    cumulative_logprob=st.floats(allow_nan=False),
    text=st.binary(max_size=40),
    finish_reason=st.binary(max_size=8),
    logprobs=st.binary(max_size=40),
)


@given(pieces)
def test_what_is_packed_is_unpacked(piece: Piece) -> None:
    assert unpack(pack(piece)) == piece


def test_a_probe_is_no_piece() -> None:
    assert unpack(PROBE) is None
    assert unpack(pack(Piece(0, False, 0, 0, 0.0, b"", b"", b""))) is not None
