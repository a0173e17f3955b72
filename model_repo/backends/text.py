"""Text to tokens within a limit."""

from __future__ import annotations

from ..runtime.errors import BadInput
from ..runtime.tokenizer import Tokenizer


def tokenized(tokenizer: Tokenizer, text: str, max_length: int, add_special_tokens: bool = True) -> list[int]:
    """Token ids of `text`.

    Raises BadInput when there are none or more than `max_length`. Text that is too long whatever its tokens are is
    refused by its size: tokenizing a megabyte would hold up everybody else.
    """
    num_bytes = len(text.encode())
    most = max_length * tokenizer.longest_token_bytes
    if num_bytes > most:
        raise BadInput(
            f"the text has {num_bytes} bytes; {max_length} tokens are allowed, which is at most {most} bytes. "
            "Shorten it"
        )
    ids = tokenizer.encode(text, add_special_tokens=add_special_tokens)
    if not 0 < len(ids) <= max_length:
        raise BadInput(f"the text has {len(ids)} tokens; 1 to {max_length} are allowed. Shorten it")
    return ids
