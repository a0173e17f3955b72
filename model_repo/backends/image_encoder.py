"""Triton model `<model>_images` of a vision-language model: from pixel_values to the rows of the prompt's images."""

from __future__ import annotations

import json
from typing import Any

from ..runtime.image_encoder import ImageEncoder
from ..runtime.prompt_embeds import PIXELS, PROMPT_EMBEDS, ImageEncoderSpec
from . import startup
from .interface import ENCODER_FOLDER
from .tensors import arrays, error_response, response


class TritonPythonModel:
    """Owns the image encoder; one instance."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads and warms the encoder. Raises BadInput when folder or environment are not as emitted."""
        folder = startup.version_folder(args)
        startup.check(folder)
        config = json.loads(args["model_config"])
        spec = ImageEncoderSpec.from_dict(json.loads(startup.parameter(config, "image_encoder")))
        threads = int(startup.parameter(config, "threads"))
        plugin = startup.optional_parameter(config, "plugin")
        self.encoder = ImageEncoder(folder / ENCODER_FOLDER, spec, threads, plugin)
        self.encoder.warm_up()

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request, each with its own error; a request without images gets no rows."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            return response({PROMPT_EMBEDS: self.encoder.encode(arrays(request)[PIXELS])})
        except Exception as error:  # the engine's own errors: this request's alone
            return error_response(error)
