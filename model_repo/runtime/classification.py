"""From a classifier's logits to the best labels, as transformers' pipeline `image-classification`. numpy only."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .errors import BadInput
from .image_steps import ImageSteps
from .labels import scores

Floats = npt.NDArray[np.float32]


class Ranked(NamedTuple):
    """The best labels (UTF-8) of each image and their scores, both [images, top_k], the best first; the scores of all
    labels [images, labels], in the model's order."""

    labels: npt.NDArray[Any]
    scores: Floats
    all_scores: Floats


def ranked(logits: Floats, steps: ImageSteps, top_k: int) -> Ranked:
    """For logits float32 [images, labels]. Raises BadInput when there are not so many labels."""
    if not 1 <= top_k <= len(steps.labels):
        raise BadInput(
            f"top_k is {top_k}; the model has {len(steps.labels)} labels, so give 1 to {len(steps.labels)}"
        )
    found = scores(logits, steps.scoring)
    best = np.argsort(-found, axis=1, kind="stable")[:, :top_k]
    names = np.array([label.encode() for label in steps.labels], np.object_)
    return Ranked(names[best], np.take_along_axis(found, best, axis=1), found)
