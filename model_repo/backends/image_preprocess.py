"""Triton model `<model>_preprocess` of a model of images: from encoded images to pixel_values."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ..runtime.errors import BadInput
from ..runtime.image_steps import Preprocessing
from ..runtime.images import Prepared, Preprocessor, batch
from . import startup
from .interface import IMAGE, IMAGE_SIZE, ORIGINAL_SIZE, PIXEL_MASK
from .tensors import arrays, error_response, response

PARTS = {
    "pixel_values": "values",
    PIXEL_MASK: "mask",
    IMAGE_SIZE.name: "sizes",
    ORIGINAL_SIZE.name: "original_sizes",
}
"""Output name -> its part of a `Batch`."""


class TritonPythonModel:
    """Stateless. The config's outputs say what the models behind it read."""

    def initialize(self, args: dict[str, str]) -> None:
        """Raises BadInput when the version folder or the environment is not as emitted."""
        folder = startup.version_folder(args)
        startup.check(folder)
        config = json.loads(args["model_config"])
        self.outputs = [output["name"] for output in config["output"]]
        steps = Preprocessing.from_dict(json.loads(startup.parameter(config, "preprocessing")))
        self.preprocessor = Preprocessor(steps)
        # Pillow decodes and resizes outside Python's lock.
        self.threads = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="slipway-images")

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request, each with its own error; all their images are prepared side by side."""
        encoded = [arrays(request)[IMAGE.name].reshape(-1) for request in requests]
        prepared = self.threads.map(self._prepared, [image for images in encoded for image in images])
        return [self._answer([next(prepared) for _ in images]) for images in encoded]

    def finalize(self) -> None:
        """Ends the threads."""
        self.threads.shutdown()

    def _prepared(self, image: Any) -> Prepared | Exception:
        """An error is its own request's, whatever it is: others are prepared in the same call."""
        try:
            return self.preprocessor(bytes(image))
        except Exception as error:
            return error

    def _answer(self, images: Sequence[Prepared | Exception]) -> Any:
        ready: list[Prepared] = []
        for place, image in enumerate(images):
            if isinstance(image, BadInput) and len(images) > 1:
                return error_response(BadInput(f"image {place + 1} of {len(images)}: {image}"))
            if isinstance(image, Exception):
                return error_response(image)
            ready.append(image)
        made = batch(ready)
        return response({name: getattr(made, PARTS[name]) for name in self.outputs})
