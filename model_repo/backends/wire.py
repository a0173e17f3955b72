"""One response of the engine loop as bytes: what generate hands to postprocess at every token.

A single uint8 tensor costs a tenth of several string tensors, which the Python backend serializes in Python.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

HEADER = struct.Struct("<Q?IIdII")
"""Stream, check, prompt tokens, new tokens, cumulative log-probability, bytes of text, of finish reason."""

PROBE = np.zeros(1, dtype=np.uint8)
"""Sent instead of a piece to ask which clients are gone; shorter than any piece."""


class Piece(NamedTuple):
    """What one response carries. Text is UTF-8, `logprobs` JSON.

    `check` asks postprocess to look whether the client of `stream` is still there.
    """

    stream: int
    check: bool
    num_prompt_tokens: int
    num_new_tokens: int
    cumulative_logprob: float
    text: bytes
    finish_reason: bytes
    logprobs: bytes


def pack(piece: Piece) -> npt.NDArray[np.uint8]:
    """uint8 [bytes]."""
    header = HEADER.pack(
        piece.stream,
        piece.check,
        piece.num_prompt_tokens,
        piece.num_new_tokens,
        piece.cumulative_logprob,
        len(piece.text),
        len(piece.finish_reason),
    )
    data = header + piece.text + piece.finish_reason + piece.logprobs
    return np.frombuffer(data, dtype=np.uint8)


def unpack(packed: npt.NDArray[np.uint8]) -> Piece | None:
    """The inverse of `pack`; None for a probe."""
    data = packed.tobytes()
    if len(data) < HEADER.size:
        return None
    stream, check, num_prompt, num_new, cumulative, num_text, num_reason = HEADER.unpack_from(data)
    text, reason = HEADER.size, HEADER.size + num_text
    logprobs = reason + num_reason
    return Piece(
        stream,
        check,
        num_prompt,
        num_new,
        cumulative,
        data[text:reason],
        data[reason:logprobs],
        data[logprobs:],
    )
