"""Triton model `<model>_postprocess` of an encoder with a head: from logits to labels, scores, spans of the text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from ..runtime.contract import Head
from ..runtime.labels import scores, spans
from . import startup
from .calls import decoded
from .interface import ENTITIES, LABEL, OFFSETS, SCORE
from .tensors import arrays, response, strings


class TritonPythonModel:
    """Stateless; the head is a parameter of the config."""

    def initialize(self, args: dict[str, str]) -> None:
        """Raises BadInput when the version folder or the environment is not as emitted."""
        startup.check(startup.version_folder(args))
        self.head = Head.from_dict(json.loads(startup.parameter(json.loads(args["model_config"]), "head")))

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request."""
        return [response(outputs(self.head, arrays(request))) for request in requests]


def outputs(head: Head, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Output tensors by name for the texts of one request: logits [texts, labels] become label, score and scores;
    logits [texts, tokens, labels] with `offsets` and `text_input` become entities."""
    found = scores(inputs["logits"], head.activation)
    if head.kind == "token_classification":
        texts = [decoded(text, "text_input") for text in inputs["text_input"].reshape(-1)]
        rows = [
            _entities(head, text, each, offsets)
            for text, each, offsets in zip(texts, found, inputs[OFFSETS.name], strict=True)
        ]
        return {ENTITIES.name: strings(rows, (len(rows), 1))}
    if len(head.labels) == 1:
        return {SCORE.name: found}
    best = found.argmax(axis=1)
    return {
        LABEL.name: strings([head.labels[place] for place in best], (len(best), 1)),
        SCORE.name: np.take_along_axis(found, best[:, None], axis=1),
        "scores": found,
    }


def _entities(head: Head, text: str, found: npt.NDArray[Any], offsets: npt.NDArray[Any]) -> str:
    """JSON of the labelled spans of one text; rows that fill are left out."""
    tokens = offsets[offsets[:, 0] >= 0].tolist()
    made = spans(found[: len(tokens)], head.labels, [(start, end) for start, end in tokens])
    return json.dumps(
        [{**asdict(span), "text": text[span.start : span.end]} for span in made], ensure_ascii=False
    )
