"""Triton model `<model>_preprocess` of an encoder: tokenizes; requests that wait together are one call."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..runtime.errors import BadInput
from ..runtime.tokenizer import Encoding, Tokenizer
from . import startup
from .calls import decoded
from .interface import OFFSETS, TEXT_PAIR, TOKEN_TYPES
from .tensors import arrays, error_response, response
from .text import tokenized, tokenized_pair

FILL = -1
"""Ends the shorter rows of a request that holds several texts."""

PARTS: Mapping[str, Callable[[Encoding], Sequence[Any]]] = {
    "input_ids": lambda encoding: encoding.ids,
    TOKEN_TYPES.name: lambda encoding: encoding.token_types,
    OFFSETS.name: lambda encoding: encoding.offsets,
}
"""Output name -> its row for one text."""


class TritonPythonModel:
    """Stateless but for the tokenizer. The config's outputs say what the models behind it read."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the tokenizer. Raises BadInput when folder or environment are not as emitted."""
        folder = startup.version_folder(args)
        startup.check(folder)
        config = json.loads(args["model_config"])
        self.outputs = [output["name"] for output in config["output"]]
        self.tokenizer = Tokenizer.load(folder / "tokenizer.json")
        self.max_length = int(startup.parameter(config, "max_length"))
        tokenized(self.tokenizer, "warm up", self.max_length)

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request, each with its own error."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            encodings = self._encodings(arrays(request))
        except BadInput as error:
            return error_response(error)
        return response({name: _filled([PARTS[name](each) for each in encodings]) for name in self.outputs})

    def _encodings(self, inputs: Mapping[str, npt.NDArray[Any]]) -> list[Encoding]:
        texts = [decoded(text, "text_input") for text in inputs["text_input"].reshape(-1)]
        pairs: list[str | None] = [None] * len(texts)
        if TEXT_PAIR.name in inputs:
            pairs = [decoded(text, TEXT_PAIR.name) for text in inputs[TEXT_PAIR.name].reshape(-1)]
        if len(pairs) != len(texts):
            raise BadInput(
                f"{len(texts)} texts in text_input, but {len(pairs)} in {TEXT_PAIR.name}; send one for each, or none"
            )
        return [
            tokenized_pair(self.tokenizer, text, pair, self.max_length)
            for text, pair in zip(texts, pairs, strict=True)
        ]


def _filled(rows: Sequence[Sequence[Any]]) -> npt.NDArray[np.int32]:
    """int32 [texts, longest, ...]."""
    each = [np.asarray(row, np.int32) for row in rows]
    filled = np.full((len(each), max(map(len, each)), *each[0].shape[1:]), FILL, np.int32)
    for place, row in enumerate(each):
        filled[place, : len(row)] = row
    return filled
