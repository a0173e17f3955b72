"""Triton model `<model>_encoder`: all texts that wait together are one batch of the engine."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt

from ..runtime.encoder import EncoderEngine
from ..runtime.errors import SlipwayError
from . import startup
from .interface import TOKEN_TYPES
from .logs import to_standard_error
from .metrics import COUNTS, Counters, Histograms, Total
from .tensors import arrays, error_response, response

COUNTERS = {
    "steps": Total("steps", "Steps of the engine"),
    "prompt_tokens": Total("prompt_tokens", "Tokens of prompts of ended requests"),
}
HISTOGRAMS = {"batch_size": ("Texts computed together", COUNTS)}


class TritonPythonModel:
    """Owns the engine; one instance."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads and warms the engine. Raises BadInput when folder or environment are not as emitted."""
        folder = startup.version_folder(args)
        startup.check(folder)
        config = json.loads(args["model_config"])
        model = startup.parameter(config, "ensemble")
        to_standard_error(model)
        self.engine = EncoderEngine.load(folder / "engine")
        self.engine.warm_up()
        self.capture = startup.capture(config, model)
        labels = {"model": model, "version": args["model_version"]}
        self.counters = Counters(COUNTERS, labels, before=self.engine.metrics.counters())
        self.histograms = Histograms(HISTOGRAMS, labels)
        self.engine.metrics.take_observations()  # the warm-up is nobody's request

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request; what arrives together is computed together."""
        inputs = [arrays(request) for request in requests]
        texts = [_rows(each["input_ids"]) for each in inputs]
        try:
            answers = self._computed(texts, inputs)
        except SlipwayError as error:
            if len(requests) == 1:
                return [error_response(error)]
            return [answer for request in requests for answer in self.execute([request])]
        if self.capture is not None:
            for ids in (ids for rows in texts for ids in rows):
                self.capture.write(ids)
        self.counters.publish(self.engine.metrics.counters())
        self.histograms.publish(self.engine.metrics.take_observations())
        return [response({self.engine.spec.head.output: answer}) for answer in answers]

    def _computed(
        self, texts: list[list[list[int]]], inputs: list[dict[str, npt.NDArray[Any]]]
    ) -> list[npt.NDArray[np.float32]]:
        """The output tensor of each request. Raises SlipwayError."""
        together = [ids for rows in texts for ids in rows]
        ends = np.cumsum([len(rows) for rows in texts])[:-1]
        if self.engine.spec.head.kind == "embedding":
            return np.split(self.engine.embed(together), ends)
        types = None
        if TOKEN_TYPES.name in inputs[0]:
            types = [kinds for each in inputs for kinds in _rows(each[TOKEN_TYPES.name])]
        logits = self.engine.logits(together, types)
        starts = [0, *ends.tolist()]
        return [_filled(logits[start : start + len(rows)]) for start, rows in zip(starts, texts, strict=True)]


def _rows(tensor: npt.NDArray[np.int32]) -> list[list[int]]:
    """The rows of a request's tensor, one a text, without what fills them."""
    return [row[row >= 0].tolist() for row in tensor]


def _filled(logits: list[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """One array of the logits of several texts; rows of tokens are filled with NaN."""
    longest = max(len(each) for each in logits)
    filled = np.full((len(logits), longest, *logits[0].shape[1:]), np.nan, np.float32)
    for row, each in zip(filled, logits, strict=True):
        row[: len(each)] = each
    return filled
