"""Triton model of an engine of named tensors: requests that wait together are one batch where rows stand alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..runtime.errors import SlipwayError
from ..runtime.tensors import TensorEngine
from . import startup
from .logs import to_standard_error
from .metrics import COUNTS, Counters, Histograms, Total
from .tensors import arrays, error_response, response

COUNTERS = {
    "steps": Total("steps", "Steps of the engine"),
    "rows": Total("rows", "Rows of requests that were answered"),
}
HISTOGRAMS = {"batch_size": ("Rows computed together", COUNTS)}
Array = npt.NDArray[Any]


class TritonPythonModel:
    """Owns the engine; one instance."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the engine and runs its example. Raises BadInput when folder or environment are not as emitted."""
        folder = startup.version_folder(args)
        startup.check(folder)
        model = args["model_name"]
        to_standard_error(model)
        self.engine = TensorEngine.load(folder / "engine")
        self.engine.warm_up()
        config = json.loads(args["model_config"])
        self.capture = startup.capture(config, startup.parameter(config, "served"))
        labels = {"model": model, "version": args["model_version"]}
        self.counters = Counters(COUNTERS, labels, before=self.engine.metrics.counters())
        self.histograms = Histograms(HISTOGRAMS, labels)
        self.engine.metrics.take_observations()  # the warm-up is nobody's request

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request; an error is told to the request that made it."""
        given = [self._received(arrays(request)) for request in requests]
        answers = self._answers(given)
        if self.capture is not None:
            for inputs, answer in zip(given, answers, strict=True):
                for kept in () if isinstance(answer, SlipwayError) else self._kept(inputs):
                    self.capture.write_tensors(kept)
        self.counters.publish(self.engine.metrics.counters())
        self.histograms.publish(self.engine.metrics.take_observations())
        return [
            self._response(answer, request.requested_output_names())
            for answer, request in zip(answers, requests, strict=True)
        ]

    def _kept(self, inputs: dict[str, Array]) -> Sequence[dict[str, Array]]:
        """What a capture keeps of an answered request."""
        return [inputs]

    def _answers(self, given: list[dict[str, Array]]) -> list[dict[str, Array] | SlipwayError]:
        if self.engine.spec.batched and len(given) > 1:
            try:
                return list(self.engine.run_together(given))
            except SlipwayError:
                pass  # one of them is at fault: each is computed alone
        answers: list[dict[str, Array] | SlipwayError] = []
        for inputs in given:
            try:
                answers.append(self.engine.run(inputs))
            except SlipwayError as error:
                answers.append(error)
        return answers

    def _received(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Inputs in the engine's shapes: Triton knows no scalars (see `emit.tensors.served_dims`)."""
        for spec in self.engine.spec.inputs:
            array = inputs.get(spec.name)
            if array is not None and array.ndim == len(spec.shape) + 1 and array.shape[-1] == 1:
                inputs[spec.name] = array.reshape(array.shape[:-1])
        return inputs

    def _response(self, answer: Mapping[str, Array] | SlipwayError, wanted: Any) -> Any:
        if isinstance(answer, SlipwayError):
            return error_response(answer)
        scalars = {spec.name for spec in self.engine.spec.outputs if len(spec.shape) == self._row_axes}
        return response(
            {
                name: np.ascontiguousarray(array[..., np.newaxis] if name in scalars else array)
                for name, array in answer.items()
                if name in wanted
            }
        )

    @property
    def _row_axes(self) -> int:
        """Axes in front of a row: tensors that have no more are served with an axis of 1 at the end."""
        return 1 if self.engine.spec.batched else 0
