"""Inputs for parity checks: token ids of real text, in ragged lengths, the same on every machine."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from model_repo.runtime.errors import BadInput

TEXT_FILE = Path(__file__).resolve().parents[1] / "demo" / "calibration.txt"
"""English prose, documents set apart by SEPARATOR."""
SEPARATOR = "<|endoftext|>"
LENGTHS = (5, 17, 64, 31, 2)
"""Tokens of each prompt: shorter and longer than a cache block of 16, on and off its border."""

_RANDOM_SEED = 20_11

SENTENCE_CHARACTERS = (30, 300)
"""The least and the most of a sentence of middling length."""
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')]?\s+(?=[\"'(]?[A-Z])")

_CHARACTERS_A_TOKEN = 200
"""A tokenizer that makes fewer tokens of English than this (whole documents become one unknown word) has no
use for text."""


def parity_prompts(
    tokenizer_file: Path | None,
    vocab_size: int,
    lengths: Sequence[int] = LENGTHS,
    text_file: Path = TEXT_FILE,
) -> list[list[int]]:
    """One prompt of token ids for each of `lengths`, special tokens of the tokenizer included.

    Real text through the tokenizer; where the tokenizer or the text is absent, or the tokenizer makes next to
    no tokens of the text, random ids from a fixed seed.
    A prompt is longer than asked only where special tokens alone fill it. Raises BadInput when the tokenizer
    cannot be read or gives ids outside the vocabulary.
    """
    if tokenizer_file is None or not text_file.is_file():
        return _random_prompts(vocab_size, lengths)
    tokenizer = _tokenizer(tokenizer_file)
    documents = itertools.cycle(read_documents(text_file))
    prompts = []
    for length in lengths:
        prompt = _encode(tokenizer, documents, length)
        if prompt is None:
            return _random_prompts(vocab_size, lengths)
        prompts.append(prompt)
    highest = max(max(prompt) for prompt in prompts)
    if highest >= vocab_size:
        raise BadInput(
            f"{tokenizer_file} gives token id {highest}, but the model's vocabulary has {vocab_size}; they "
            "do not belong together"
        )
    return prompts


def _random_prompts(vocab_size: int, lengths: Sequence[int]) -> list[list[int]]:
    """Ids drawn from a fixed seed."""
    generator = np.random.default_rng(_RANDOM_SEED)
    return [generator.integers(0, vocab_size, length).tolist() for length in lengths]


def read_documents(text_file: Path) -> list[str]:
    """The documents of a text file, without the blanks around them. Raises BadInput when there are none."""
    documents = [document.strip() for document in read_utf8(text_file).split(SEPARATOR)]
    if not any(documents):
        raise BadInput(f"{text_file} holds no text; give documents set apart by {SEPARATOR}")
    return [document for document in documents if document]


def read_sentences(text_file: Path) -> list[str]:
    """The different sentences of middling length in a text file's documents, in order. Raises BadInput for no text."""
    least, most = SENTENCE_CHARACTERS
    found = dict.fromkeys(
        sentence
        for document in read_documents(text_file)
        for sentence in _SENTENCE_END.split(" ".join(document.split()))
        if least <= len(sentence) <= most
    )
    return list(found)


def read_utf8(path: Path) -> str:
    """A file's text. Raises BadInput when it cannot be read as UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is not readable text: {error}") from error


def _tokenizer(tokenizer_file: Path) -> Tokenizer:
    """The tokenizer without the padding and truncation that its file may ask for. Raises BadInput."""
    try:
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
    except Exception as error:  # the library raises plain Exception
        raise BadInput(
            f"{tokenizer_file} is not a readable tokenizer ({error}); get the file again"
        ) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _encode(tokenizer: Tokenizer, documents: Iterator[str], length: int) -> list[int] | None:
    """`length` tokens from the next documents, as many as it takes; None where far too many would not do."""
    room = max(length - tokenizer.num_special_tokens_to_add(is_pair=False), 1)
    text = ""
    while True:
        text += next(documents)
        encoding = tokenizer.encode(text, add_special_tokens=False)
        if len(encoding.ids) >= room:
            encoding.truncate(room)
            ids: list[int] = tokenizer.post_process(encoding).ids
            return ids
        if len(text) > room * _CHARACTERS_A_TOKEN:
            return None
        text += "\n\n"
