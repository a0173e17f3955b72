"""Triton model `<model>_preprocess` of an encoder: tokenizes; requests that wait together are one call."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from ..runtime.errors import BadInput
from ..runtime.tokenizer import Tokenizer
from . import startup
from .calls import decoded
from .tensors import arrays, error_response, response
from .text import tokenized

FILL = -1
"""Ends the shorter rows of a request that holds several texts."""


class TritonPythonModel:
    """Stateless but for the tokenizer."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the tokenizer. Raises BadInput when folder or environment are not as emitted."""
        folder = startup.version_folder(args)
        startup.check(folder)
        self.tokenizer = Tokenizer.load(folder / "tokenizer.json")
        self.max_length = int(startup.parameter(json.loads(args["model_config"]), "max_length"))
        tokenized(self.tokenizer, "warm up", self.max_length)

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request, each with its own error."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            texts = [decoded(text, "text_input") for text in arrays(request)["text_input"].reshape(-1)]
            rows = [tokenized(self.tokenizer, text, self.max_length) for text in texts]
        except BadInput as error:
            return error_response(error)
        input_ids = np.full((len(rows), max(map(len, rows))), FILL, dtype=np.int32)
        for row, ids in enumerate(rows):
            input_ids[row, : len(ids)] = ids
        return response({"input_ids": input_ids})
