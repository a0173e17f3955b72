"""Triton model `<model>_preprocess` of a vision-language model: the prompt's tokens, and its images' pixel_values."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from ..runtime.errors import BadInput
from ..runtime.images import pixel_values
from ..runtime.prompt_embeds import ImageEncoderSpec
from . import preprocess, startup
from .calls import parse
from .interface import IMAGES
from .interface import pixel_values as pixel_field
from .tensors import arrays, error_response, response


class TritonPythonModel(preprocess.TritonPythonModel):
    """As that of other decoders; each placeholder of the text becomes as many tokens as an image has rows."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the tokenizer. Raises BadInput when folder or environment are not as emitted."""
        super().initialize(args)
        config = json.loads(args["model_config"])
        self.images = ImageEncoderSpec.from_dict(json.loads(startup.parameter(config, "image_encoder")))

    def _answer(self, request: Any) -> Any:
        try:
            inputs = arrays(request)
            parameters = json.loads(request.parameters() or "{}")
            call = parse(inputs, parameters, self.default_max_tokens, takes_images=True)
            encoded = list(map(bytes, inputs.get(IMAGES.name, np.array([], object)).reshape(-1)))
            # Counted before any image is decoded.
            prompt = self.images.expanded(self.prompt_ids(call), len(encoded), self.max_length)
            pixels = pixel_values(self.images, encoded)
            name = pixel_field(self.images.pixel_shape).name
            return response({**self.handed_on(call, prompt, request), name: pixels})
        except BadInput as error:
            return error_response(error)
