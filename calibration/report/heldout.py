"""Text that nothing was trained or calibrated on, as windows of tokens and as sentences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from calibration.data import SENTENCE_CHARACTERS, read_documents, read_sentences
from model_repo.runtime.errors import BadInput
from model_repo.runtime.tokenizer import Tokenizer

HELDOUT_FILE = Path(__file__).resolve().parents[2] / "demo" / "heldout.txt"
"""The last 2% of each book of the demo model's text."""

WINDOW = 512
"""Tokens that a decoder sees at once; the next window begins anew."""

OVERLAP = 24
"""So many tokens in a row that are the same are no chance."""


def windows(path: Path, tokenizer: Tokenizer, length: int, most_tokens: int | None) -> list[list[int]]:
    """Each document of a text file cut into windows of `length` tokens, up to `most_tokens` in all.

    A window of a single token is left out: it predicts nothing. Raises BadInput when the file is missing or holds
    no text.
    """
    found: list[list[int]] = []
    left = most_tokens
    for document in _documents(path):
        ids = tokenizer.encode(document)
        for start in range(0, len(ids), length):
            window = ids[start : start + length]
            window = window if left is None else window[:left]
            if len(window) > 1:
                found.append(window)
            if left is not None:
                left -= len(window)
                if left <= 0:
                    return found
    return found


def sentences(path: Path, count: int) -> list[str]:
    """`count` different sentences of middling length, spread evenly over the file. Raises BadInput for too few."""
    every = read_sentences(path)
    if len(every) < count:
        least, most = SENTENCE_CHARACTERS
        raise BadInput(
            f"{path} holds {len(every)} sentences of {least} to {most} characters; {count} are asked for"
        )
    return [every[place * len(every) // count] for place in range(count)]


def check_apart(calibrated: Sequence[Sequence[int]], heldout: Sequence[Sequence[int]]) -> None:
    """Raises BadInput when held-out text holds OVERLAP tokens in a row of what was calibrated on."""
    known = {
        tuple(window[at : at + OVERLAP]) for window in heldout for at in range(len(window) - OVERLAP + 1)
    }
    for place, sample in enumerate(calibrated):
        for at in range(len(sample) - OVERLAP + 1):
            if tuple(sample[at : at + OVERLAP]) in known:
                raise BadInput(
                    f"the held-out text holds {OVERLAP} tokens in a row of calibration sample {place}; figures on it "
                    "would flatter. Give other text with --data"
                )


def _documents(path: Path) -> list[str]:
    if not path.is_file():
        raise BadInput(f"no held-out text at {path}; give a text file that nothing was calibrated on")
    return read_documents(path)
