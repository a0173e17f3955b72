"""A folder of images, prepared as the server would prepare them; a folder within it is a domain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model_repo.runtime.contract import TensorSpec
from model_repo.runtime.errors import BadInput

from .base import Found

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"))


def read_pictures(
    folder: Path, inputs: Sequence[TensorSpec], preprocessor: Callable[[bytes], Any] | None
) -> list[Found]:
    """Every image below `folder`, in the order of their paths; other files are passed over.

    Raises BadInput when the model takes no images or says nothing about their preparation, when one cannot be read,
    and when they come out in different sizes.
    """
    if preprocessor is None or len(inputs) != 1:
        raise BadInput(
            f"{folder} is a folder, but of this model nothing is known about how images become its inputs; give a .npz "
            f"with {', '.join(spec.name for spec in inputs)}"
        )
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES):
        try:
            values = np.ascontiguousarray(preprocessor(path.read_bytes()).values[None])
        except (BadInput, OSError) as error:
            raise BadInput(f"{path} cannot be used: {error}") from error
        domain = path.parent.relative_to(folder).as_posix()
        found.append(Found({inputs[0].name: values}, 1, "" if domain == "." else domain))
    shapes = sorted(
        {next(iter(sample.item.values())).shape for sample in found if not isinstance(sample.item, tuple)}
    )
    if len(shapes) > 1:
        raise BadInput(
            f"the images in {folder} become arrays of {len(shapes)} shapes, such as {shapes[0]} and {shapes[1]}; "
            "calibration takes images of one size"
        )
    return found
