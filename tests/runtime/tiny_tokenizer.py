"""A byte-level BPE tokenizer made in memory: tokens of single bytes, and merges that cut characters apart."""

from __future__ import annotations

import functools

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from model_repo.runtime.tokenizer import Tokenizer

TEXT = (
    "the quick brown fox jumps over the lazy dog; a ship slides down the slipway into the water. "
    "über straße naïve café 日本語 東京 你好 世界 🙂🚢👩‍👩‍👧 "
)
END = "<end>"


@functools.cache
def byte_level(vocab_size: int = 300) -> tokenizers.Tokenizer:
    """At least all 256 bytes, trained on TEXT up to `vocab_size` tokens, and a special token END."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    return tokenizer


def tiny_tokenizer(chat_template: str | None = None) -> Tokenizer:
    """The runtime's wrapper around `byte_level()`."""
    return Tokenizer(byte_level(), chat_template)
