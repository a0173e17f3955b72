"""From tokens to text as they come: never half a character, never a piece of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

REPLACEMENT = "\ufffd"
MAX_HELD_TOKENS = 8
"""No character has more bytes than 4: what is still incomplete after this many tokens never becomes whole."""


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

    `context` are the last tokens of the prompt: some tokenizers write a token's leading space only after others.
    """

    def __init__(self, decoder: Decoder, stop: Sequence[str] = (), context: Sequence[int] = ()) -> None:
        self._decoder = decoder
        self._stop = tuple(stop)
        if context and decoder.decode(context).endswith(REPLACEMENT):
            context = ()  # the prompt ends within a character, whose rest would be taken for its beginning
        self._tokens = list(context)  # from a little before the first token whose text is not out yet
        self._shown = len(
            context
        )  # tokens of _tokens whose text is out; they stay as context for the next ones
        self._held = ""  # text that could be the beginning of a stop string

    def push(self, token_id: int) -> Piece:
        """Takes a token; gives the text that is certain now."""
        self._tokens.append(token_id)
        return self._release(self._new_text(final=False), final=False)

    def flush(self) -> Piece:
        """The text held back, at the end of a request that no stop string ended."""
        return self._release(self._new_text(final=True), final=True)

    def _new_text(self, final: bool) -> str:
        """Text of the tokens not shown yet, as far as its characters are whole.

        Decoders look at neighbours (a leading space, byte pairs), so text is the difference of two decodings that
        share their context.
        """
        pending = len(self._tokens) - self._shown
        if not pending:
            return ""
        text = self._decoder.decode(self._tokens)
        before = self._decoder.decode(self._tokens[: self._shown]) if self._shown else ""
        if text.endswith(REPLACEMENT) and pending < MAX_HELD_TOKENS and not final:
            return ""
        self._tokens = self._tokens[self._shown :]
        self._shown = len(self._tokens)
        return text[len(before) :]

    def _release(self, new: str, final: bool) -> Piece:
        text = self._held + new
        ends = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if ends:
            self._held = ""
            return Piece(text[: min(ends)], True)
        keep = 0 if final else max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return Piece(text[: len(text) - keep], False)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`, without being all of it."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
