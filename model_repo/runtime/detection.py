"""From a detector's logits and boxes to objects, as transformers' `post_process_object_detection`. numpy only.

DETR (https://arxiv.org/abs/2005.12872): each query has scores of the classes and of 'no object' (softmax). Deformable
DETR (https://arxiv.org/abs/2010.04159) and its kind: each pair of query and class has a score (sigmoid).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .errors import BadInput
from .image_steps import ImageSteps
from .labels import scores

Floats = npt.NDArray[np.float32]


class Objects(NamedTuple):
    """What was found in one image: float32 [objects, 4] boxes (left, top, right, bottom, in pixels), float32 [objects]
    scores, int64 [objects] classes."""

    boxes: Floats
    scores: Floats
    classes: npt.NDArray[np.int64]


class Detected(NamedTuple):
    """The objects of several images: int32 [images, 1] how many each has; then float32 [images, most, 4] boxes, float32
    [images, most] scores and [images, most] labels (UTF-8), filled up with NaN and empty labels."""

    num_objects: npt.NDArray[np.int32]
    boxes: Floats
    scores: Floats
    labels: npt.NDArray[Any]


def detected(
    logits: Floats, centers: Floats, sizes: Sequence[tuple[int, int]], steps: ImageSteps, threshold: float
) -> Detected:
    """What `objects` finds in each image: arguments as there, with an axis of images first.

    Raises BadInput when the threshold is no score.
    """
    if not 0 <= threshold < 1:
        raise BadInput(f"threshold is {threshold:g}; scores are between 0 and 1, so give 0 to less than 1")
    each = [
        objects(image_logits, image_centers, size, steps, threshold)
        for image_logits, image_centers, size in zip(logits, centers, sizes, strict=True)
    ]
    counts = [len(found.scores) for found in each]
    filled = (len(each), max(counts))
    boxes, values = np.full((*filled, 4), np.nan, np.float32), np.full(filled, np.nan, np.float32)
    labels = np.full(filled, b"", np.object_)
    for row, found in enumerate(each):
        boxes[row, : counts[row]] = found.boxes
        values[row, : counts[row]] = found.scores
        labels[row, : counts[row]] = [steps.labels[place].encode() for place in found.classes]
    return Detected(np.array(counts, np.int32)[:, np.newaxis], boxes, values, labels)


def objects(
    logits: Floats, centers: Floats, size: tuple[int, int], steps: ImageSteps, threshold: float
) -> Objects:
    """Objects with a score above `threshold` in one image of height and width `size`.

    logits float32 [queries, classes]; centers float32 [queries, 4]: x and y of each box's middle, width, height, as
    parts of the image's. With softmax in the order of the queries, with sigmoid the highest score first.
    """
    found = scores(logits, "softmax" if steps.scoring == "softmax" else "sigmoid")
    if steps.scoring == "softmax":
        found = found[:, :-1]
        classes = found.argmax(axis=1)
        queries = np.arange(len(found))
    else:
        best = np.argsort(-found, axis=None, kind="stable")[: steps.candidates or len(found)]
        queries, classes = np.unravel_index(best, found.shape)
    values = found[queries, classes]
    kept = values > np.float32(threshold)
    middle, half = centers[:, :2], np.float32(0.5) * centers[:, 2:]
    height, width = size
    corners = np.concatenate([middle - half, middle + half], axis=1)
    boxes = corners * np.array([width, height, width, height], np.float32)
    return Objects(boxes[queries[kept]], values[kept], classes[kept].astype(np.int64))
