"""Triton model `<model>_tensors` of a model that takes images of any size: those of one size are computed together.

An image in company of larger ones would be padded, and what a network makes of the padding reaches into the image. So
each is cut to its own size, whatever request it came with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..runtime.errors import BadInput, SlipwayError
from . import named_tensors
from .interface import IMAGE_SIZE

Array = npt.NDArray[Any]
Place = tuple[int, int]
"""Request and row."""


class TritonPythonModel(named_tensors.TritonPythonModel):
    """Owns the engine; one instance."""

    def _kept(self, inputs: dict[str, Array]) -> Sequence[dict[str, Array]]:
        """Each image by itself, without what fills it up."""
        return [{"pixel_values": image[None]} for image in _cut(inputs)]

    def _answers(self, given: list[dict[str, Array]]) -> list[dict[str, Array] | SlipwayError]:
        errors: dict[int, SlipwayError] = {}
        alike: dict[tuple[int, ...], dict[Place, Array]] = {}
        for request, inputs in enumerate(given):
            try:
                rows = _cut(inputs)
            except BadInput as error:
                errors[request] = error
                continue
            for row, image in enumerate(rows):
                alike.setdefault(image.shape, {})[request, row] = image
        found: dict[Place, dict[str, Array]] = {}
        for images in alike.values():
            try:
                answers = self.engine.run({"pixel_values": np.stack(list(images.values()))})
            except SlipwayError as error:
                errors |= {request: error for request, _ in images}
                continue
            for number, place in enumerate(images):
                found[place] = {name: array[number] for name, array in answers.items()}
        return [
            errors[request] if request in errors else _joined(found, request, len(inputs["pixel_values"]))
            for request, inputs in enumerate(given)
        ]


def _cut(inputs: dict[str, Array]) -> list[Array]:
    """The images of a request without what fills them up. Raises BadInput when a size does not fit."""
    pixels = inputs["pixel_values"]
    sizes = inputs.get(IMAGE_SIZE.name)
    if sizes is None:
        return list(pixels)
    most = pixels.shape[2:]
    for height, width in sizes.tolist():
        if not (0 < height <= most[0] and 0 < width <= most[1]):
            raise BadInput(
                f"{IMAGE_SIZE.name} says {height} x {width} (height x width); pixel_values have {most[0]} x {most[1]}"
            )
    return [image[:, :height, :width] for image, (height, width) in zip(pixels, sizes.tolist(), strict=True)]


def _joined(found: dict[Place, dict[str, Array]], request: int, rows: int) -> dict[str, Array]:
    """The outputs of one request."""
    each = [found[request, row] for row in range(rows)]
    return {name: np.stack([answer[name] for answer in each]) for name in each[0]}
