"""Triton model `<model>_postprocess` of a model of images: from logits to labels, or to objects with boxes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from ..runtime.classification import ranked
from ..runtime.detection import detected
from ..runtime.errors import BadInput
from ..runtime.image_steps import ImageSteps
from . import startup
from .interface import DETECTED, ORIGINAL_SIZE, RANKED, THRESHOLD, TOP_K
from .tensors import arrays, error_response, response

Arrays = Mapping[str, npt.NDArray[Any]]


class TritonPythonModel:
    """Stateless; the steps are a parameter of the config."""

    def initialize(self, args: dict[str, str]) -> None:
        """Raises BadInput when the version folder or the environment is not as emitted."""
        startup.check(startup.version_folder(args))
        steps = startup.parameter(json.loads(args["model_config"]), "images")
        self.steps = ImageSteps.from_dict(json.loads(steps))

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request, each with its own error."""
        return [self._answer(arrays(request)) for request in requests]

    def _answer(self, inputs: Arrays) -> Any:
        try:
            if self.steps.task == "classification":
                top_k = int(_one(inputs, TOP_K.name, 1))
                made = dict(zip(RANKED, ranked(inputs["logits"], self.steps, top_k), strict=True))
            else:
                sizes = [(height, width) for height, width in inputs[ORIGINAL_SIZE.name].tolist()]
                threshold = _one(inputs, THRESHOLD.name, 0.5)
                found = detected(inputs["logits"], inputs["pred_boxes"], sizes, self.steps, threshold)
                made = dict(zip((field.name for field in DETECTED), found, strict=True))
        except BadInput as error:
            return error_response(error)
        return response(made)


def _one(inputs: Arrays, name: str, default: float) -> float:
    """The value of an optional input that a request has once for all its images. Raises BadInput when they differ."""
    if name not in inputs:
        return default
    values = {float(value) for value in inputs[name].reshape(-1)}
    if len(values) != 1:
        raise BadInput(f"{name} is {sorted(values)} in one request; give all its images the same value")
    return values.pop()
