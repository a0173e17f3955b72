"""From tokens to text as they come: never half a character, never a piece of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

REPLACEMENT = "\ufffd"
"""What decoders give for bytes that are no character, or not yet."""

MAX_PENDING = 3
"""A character of UTF-8 has up to four bytes: at most so many replacements may yet become one character."""

WINDOW = 12
KEPT = 4
"""Most tokens decoded at a time, and how many stay when the window moves on: enough for the bytes of a
character, and for decoders that join a token to the one before it."""


class Decoder(Protocol):
    """Turns token ids into text."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of `token_ids`."""


class Piece(NamedTuple):
    """New text, and whether a stop string ended it (the stop string and what follows are cut off)."""

    text: str
    stopped: bool


class Detokenizer:
    """One request's text. Feed each token once with `push`; `flush` gives what was held back at the end.

    Only the last tokens are decoded at a time. Replacements at the end of the text wait until later tokens show
    what they are: all text before them is certain, however tokens and characters overlap.
    `context` are the last tokens of the prompt: some tokenizers write a token's leading space only after others.
    """

    def __init__(self, decoder: Decoder, stop: Sequence[str] = (), context: Sequence[int] = ()) -> None:
        self._decoder = decoder
        self._stop = tuple(stop)
        before = decoder.decode(context) if context else ""
        if before.endswith(REPLACEMENT):
            # The prompt ends within a character, whose rest would be taken for the beginning of the answer.
            context, before = (), ""
        self._window = list(context)
        self._given = len(before)  # characters of the window's text that are out
        self._held = ""  # text that could be the beginning of a stop string

    def push(self, token_id: int) -> Piece:
        """Takes a token; gives the text that is certain now."""
        self._window.append(token_id)
        text = self._decoder.decode(self._window)
        certain = max(len(text) - _num_uncertain(text), self._given)
        new = text[self._given : certain]
        self._given = certain
        if len(self._window) > WINDOW:
            num_waiting = max(len(text) - self._given, 0)
            del self._window[:-KEPT]
            self._given = max(len(self._decoder.decode(self._window)) - num_waiting, 0)
        return self._release(new)

    def flush(self) -> Piece:
        """The text held back, at the end of a request that no stop string ended.

        Of a character whose last bytes never came there is nothing to give.
        """
        held, self._held = self._held, ""
        return Piece(held, False)

    def _release(self, new: str) -> Piece:
        if not self._stop:
            return Piece(new, False)
        text = self._held + new
        # The stop string that is complete first wins, so that how text is cut into tokens changes nothing.
        found = [(start + len(stop), start) for stop in self._stop if (start := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return Piece(text[: min(found)[1]], True)
        certain = len(text) - max(_overlap(text, stop) for stop in self._stop)
        self._held = text[certain:]
        return Piece(text[:certain], False)


def _num_uncertain(text: str) -> int:
    """Replacements at the end of `text`, at most MAX_PENDING."""
    if not text.endswith(REPLACEMENT):
        return 0
    return min(len(text) - len(text.rstrip(REPLACEMENT)), MAX_PENDING)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`, without being all of it."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
