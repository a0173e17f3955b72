"""Samples of those who bring none: a decoder's are the default text's documents, an encoder's its sentences."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Literal

from tokenizers import Tokenizer as RawTokenizer
from tokenizers import models, pre_tokenizers

from calibration.data import SENTENCE_CHARACTERS, SEPARATOR
from calibration.samples import DEFAULT_FILE, DEFAULT_SAMPLES, open_samples
from model_repo.runtime.tokenizer import Tokenizer

TEXT = DEFAULT_FILE.read_text(encoding="utf-8")
PLAIN = TEXT.replace(SEPARATOR, " ").split()
WORDS = {
    word: n for n, word in enumerate(sorted({"[UNK]", *PLAIN, *(word.rstrip("\"')") for word in PLAIN)}))
}
"""A sentence ends before its closing quote."""


def texts(kind: Literal["decoder", "encoder"]) -> list[str]:
    """The samples as words again."""
    raw = RawTokenizer(models.WordLevel(WORDS, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    facts: Any = SimpleNamespace(kind=kind, kv=(), inputs=(), batched=False)
    samples = open_samples(None, facts, vocab_size=len(WORDS), tokenizer=Tokenizer(raw))
    named = {place: word for word, place in WORDS.items()}
    return [" ".join(named[token] for token in item) for item in samples.items]


def test_an_encoder_is_calibrated_on_sentences() -> None:
    found = texts("encoder")
    least, most = SENTENCE_CHARACTERS
    whole = " ".join(PLAIN)
    assert len(set(found)) == len(found) == DEFAULT_SAMPLES
    assert all(least <= len(sentence) <= most and sentence in whole for sentence in found)
    assert sum(sentence.rstrip("\"')_").endswith((".", "!", "?")) for sentence in found) > 0.7 * len(found)


def test_a_decoder_is_calibrated_on_documents() -> None:
    found = texts("decoder")
    assert max(map(len, found)) > 2 * SENTENCE_CHARACTERS[1]
