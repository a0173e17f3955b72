"""Parity prompts: real text, ragged, the same every time."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from calibration.data import LENGTHS, TEXT_FILE, parity_prompts
from model_repo.runtime.errors import BadInput

WORDS = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "one": 3, "two": 4, "three": 5}


@pytest.fixture
def tokenizer_file(tmp_path: Path) -> Path:
    """Words apart, set between [CLS] and [SEP], and with padding and truncation that must not apply."""
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.enable_truncation(6)
    tokenizer.enable_padding(length=20)
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    """Two documents of two and three words."""
    path = tmp_path / "text.txt"
    path.write_text("one two\n\n<|endoftext|>\n\nthree three three\n", encoding="utf-8")
    return path


def test_prompts_are_the_text_in_the_lengths_asked(tokenizer_file: Path, text_file: Path) -> None:
    prompts = parity_prompts(tokenizer_file, 6, lengths=(4, 9), text_file=text_file)
    assert prompts == [[1, 3, 4, 2], [1, 5, 5, 5, 3, 4, 5, 5, 2]]


def test_without_a_tokenizer_ids_are_random_but_always_the_same() -> None:
    prompts = parity_prompts(None, 50)
    assert [len(prompt) for prompt in prompts] == list(LENGTHS)
    assert prompts == parity_prompts(None, 50)
    assert all(0 <= token < 50 for prompt in prompts for token in prompt)
    assert len({token for prompt in prompts for token in prompt}) > 20


def test_a_tokenizer_of_another_model_is_refused(tokenizer_file: Path, text_file: Path) -> None:
    with pytest.raises(BadInput, match="token id 4, but the model's vocabulary has 4"):
        parity_prompts(tokenizer_file, 4, lengths=(4,), text_file=text_file)


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(BadInput, match="not a readable tokenizer"):
        parity_prompts(path, 10)


def test_a_text_file_without_text_is_refused(tokenizer_file: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("<|endoftext|>", encoding="utf-8")
    with pytest.raises(BadInput, match="holds no text"):
        parity_prompts(tokenizer_file, 6, text_file=empty)


def test_the_calibration_text_is_committed() -> None:
    assert len(TEXT_FILE.read_text(encoding="utf-8")) > 10_000


def test_a_tokenizer_that_makes_no_words_of_text_gets_random_ids(tmp_path: Path) -> None:
    words = Tokenizer(models.WordLevel({"unknown": 0, "word": 1}, unk_token="unknown"))
    words.save(str(tmp_path / "tokenizer.json"))  # no pre-tokenizer: each document is one unknown word
    prompts = parity_prompts(tmp_path / "tokenizer.json", vocab_size=50, lengths=(5, 40))
    assert [len(prompt) for prompt in prompts] == [5, 40]
    assert prompts == parity_prompts(None, vocab_size=50, lengths=(5, 40))
