"""Whether a tokenizer and a model know the same tokens, from tokenizer.json alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model_repo.runtime.errors import BadInput

from .files import read_json


def check_vocabulary(tokenizer_file: Path, vocab_size: int) -> None:
    """Raises BadInput when the tokenizer gives ids that the model has no row for."""
    token, largest = _largest_id(read_json(tokenizer_file))
    if largest >= vocab_size:
        raise BadInput(
            f"{tokenizer_file} gives ids up to {largest} (the token {token!r}), but the model's vocabulary has "
            f"{vocab_size} (ids 0 to {vocab_size - 1}); give the tokenizer that belongs to the checkpoint, or resize "
            "the model's embeddings to it"
        )


def _largest_id(tokenizer: dict[str, Any]) -> tuple[str, int]:
    """The token of the largest id and that id; ('', -1) when the file lists no tokens."""
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    ids: dict[str, int] = {}
    if isinstance(vocabulary, dict):
        ids = {token: place for token, place in vocabulary.items() if isinstance(place, int)}
    elif isinstance(vocabulary, list) and vocabulary:  # Unigram: [token, score], in the order of their ids
        ids = {str(vocabulary[-1][0]): len(vocabulary) - 1}
    for added in tokenizer.get("added_tokens") or ():
        if isinstance(added, dict) and isinstance(added.get("id"), int):
            ids[str(added.get("content"))] = added["id"]
    return max(ids.items(), key=lambda item: item[1], default=("", -1))
