"""Text to tokens within a limit."""

from __future__ import annotations

from ..runtime.errors import BadInput
from ..runtime.tokenizer import Encoding, Tokenizer


def tokenized(tokenizer: Tokenizer, text: str, max_length: int, add_special_tokens: bool = True) -> list[int]:
    """Token ids of `text`.

    Raises BadInput when there are none or more than `max_length`. Text that is too long whatever its tokens are is
    refused by its size: tokenizing a megabyte would hold up everybody else.
    """
    _check_bytes(tokenizer, "the text has", len(text.encode()), max_length)
    ids = tokenizer.encode(text, add_special_tokens=add_special_tokens)
    _check_tokens("the text has", len(ids), max_length)
    return ids


def tokenized_pair(tokenizer: Tokenizer, text: str, pair: str | None, max_length: int) -> Encoding:
    """The tokens of `text`, and of `pair` behind it unless it is None. Raises BadInput as `tokenized` does."""
    subject = "the text has" if pair is None else "the two texts have together"
    _check_bytes(tokenizer, subject, len(text.encode()) + len((pair or "").encode()), max_length)
    encoding = tokenizer.encode_pair(text, pair)
    _check_tokens(subject, len(encoding.ids), max_length)
    return encoding


def _check_bytes(tokenizer: Tokenizer, subject: str, num_bytes: int, max_length: int) -> None:
    most = max_length * tokenizer.longest_token_bytes
    if num_bytes > most:
        raise BadInput(
            f"{subject} {num_bytes} bytes; {max_length} tokens are allowed, which is at most {most} bytes. "
            "Shorten it"
        )


def _check_tokens(subject: str, tokens: int, max_length: int) -> None:
    if not 0 < tokens <= max_length:
        raise BadInput(f"{subject} {tokens} tokens; 1 to {max_length} are allowed. Shorten it")
