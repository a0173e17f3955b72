"""Plain text: documents of a .txt file, and what becomes of a text, a chat or token ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from calibration.data import read_documents, read_sentences
from model_repo.runtime.errors import BadInput
from model_repo.runtime.tokenizer import Tokenizer

from .base import Found


class Cutter:
    """Token ids within a model's length.

    A decoder's texts are cut into pieces one after the other, of which a last one of a single token is left out; an
    encoder's keep their beginning and, where they lose their end, the last token, which is the tokenizer's own.
    """

    def __init__(
        self,
        kind: Literal["decoder", "encoder", "tensors"],
        tokenizer: Tokenizer | None,
        vocab_size: int,
        length: int,
    ) -> None:
        self._kind = kind
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._length = length

    def text(self, text: str, domain: str, where: str) -> list[Found]:
        """Raises BadInput when the model has no tokenizer."""
        return self._cut(self._words(where).encode(text), domain, where)

    def chat(self, messages: Sequence[dict[str, str]], domain: str, where: str) -> list[Found]:
        """Raises BadInput when the model has no chat template, or it refuses the messages."""
        tokenizer = self._words(where)
        try:
            text = tokenizer.render(messages)
        except BadInput as error:
            raise BadInput(f"{where}: {error}") from error
        return self._cut(tokenizer.encode(text, add_special_tokens=False), domain, where)

    def ids(self, ids: Sequence[int], domain: str, where: str) -> list[Found]:
        """Raises BadInput for ids outside the vocabulary."""
        return self._cut(ids, domain, where)

    def _words(self, where: str) -> Tokenizer:
        if self._tokenizer is None:
            raise BadInput(f"{where} is text, and this model came without a tokenizer; give input_ids")
        return self._tokenizer

    def _cut(self, ids: Sequence[int], domain: str, where: str) -> list[Found]:
        if not ids:
            raise BadInput(f"{where} has no tokens; every sample needs one at least")
        wrong = next((token for token in ids if not 0 <= token < self._vocab_size), None)
        if wrong is not None:
            raise BadInput(
                f"{where} has the token {wrong}; this model's ids are 0 to {self._vocab_size - 1}, so it is data of "
                "another model"
            )
        if len(ids) <= self._length:
            return [Found(tuple(ids), len(ids), domain)]
        if self._kind == "encoder":
            return [Found((*ids[: self._length - 1], ids[-1]), self._length, domain)]
        pieces = [tuple(ids[start : start + self._length]) for start in range(0, len(ids), self._length)]
        return [Found(piece, len(piece), domain) for piece in pieces if len(piece) > 1]


def read_text(path: Path, cutter: Cutter, *, by_sentence: bool = False) -> list[Found]:
    """The documents of a .txt file, set apart by SEPARATOR, or its sentences. Raises BadInput when it cannot be read or
    holds none."""
    texts, kind = (read_sentences(path), "sentence") if by_sentence else (read_documents(path), "document")
    return [
        found
        for place, text in enumerate(texts, 1)
        for found in cutter.text(text, "", f"{path}, {kind} {place},")
    ]
