"""Triton model `<model>_encoder`: all texts that wait together are one batch of the engine."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt

from ..runtime.encoder import EncoderEngine
from ..runtime.errors import SlipwayError
from . import startup
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
        model = startup.parameter(json.loads(args["model_config"]), "ensemble")
        to_standard_error(model)
        self.engine = EncoderEngine.load(folder / "engine")
        self.engine.warm_up()
        labels = {"model": model, "version": args["model_version"]}
        self.counters = Counters(COUNTERS, labels, before=self.engine.metrics.counters())
        self.histograms = Histograms(HISTOGRAMS, labels)
        self.engine.metrics.take_observations()  # the warm-up is nobody's request

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request; what arrives together is computed together."""
        texts = [_rows(request) for request in requests]
        try:
            embeddings = self.engine.embed([ids for rows in texts for ids in rows])
        except SlipwayError as error:
            if len(requests) == 1:
                return [error_response(error)]
            return [answer for request in requests for answer in self.execute([request])]
        self.counters.publish(self.engine.metrics.counters())
        self.histograms.publish(self.engine.metrics.take_observations())
        ends = np.cumsum([len(rows) for rows in texts])[:-1]
        return [response({"embedding": part}) for part in np.split(embeddings, ends)]


def _rows(request: Any) -> list[list[int]]:
    """Token ids of each text of a request, without what fills the rows."""
    input_ids: npt.NDArray[np.int32] = arrays(request)["input_ids"]
    return [row[row >= 0].tolist() for row in input_ids]
