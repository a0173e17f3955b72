"""How a checkpoint's detector makes objects of its outputs: the known ways are tried against transformers' own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from model_repo.runtime.errors import BadInput
from model_repo.runtime.image_steps import ImageSteps, Preprocessing, Scoring

WAYS: tuple[tuple[Scoring, int], ...] = (("softmax", 0), ("sigmoid", 0), ("sigmoid", 100), ("sigmoid", 300))
"""`scoring` and `candidates` of `ImageSteps`."""


def detection_steps(
    processor: Any, steps: Preprocessing, labels: tuple[str, ...], folder: Path
) -> ImageSteps:
    """How objects are found, tried on random logits and boxes against the processor's own.

    Raises BadInput when none of the known ways gives what `post_process_object_detection` does.
    """
    import numpy as np
    import torch

    from model_repo.runtime.detection import objects

    random = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(1, 130, 7, generator=random)
    boxes = torch.rand(1, 130, 4, generator=random)
    given = SimpleNamespace(logits=logits, pred_boxes=boxes)
    try:
        (expected,) = processor.post_process_object_detection(
            given, threshold=0.4, target_sizes=torch.tensor([[480, 641]])
        )
    except Exception as error:  # the method is missing, or wants more than a detector gives
        raise BadInput(
            f"{folder}: {type(processor).__name__} finds no objects ({type(error).__name__}: {error}); detectors of "
            "the DETR kind are supported"
        ) from error
    for scoring, candidates in WAYS:
        tried = ImageSteps("detection", steps, labels, scoring, candidates)
        found = objects(logits[0].numpy(), boxes[0].numpy(), (480, 641), tried, 0.4)
        if np.array_equal(found.classes, expected["labels"]) and all(
            np.allclose(one, other, atol=1e-4)
            for one, other in ((found.boxes, expected["boxes"]), (found.scores, expected["scores"]))
        ):
            return tried
    raise BadInput(
        f"{folder}: {type(processor).__name__} finds objects in a way that is not known; detectors of the DETR kind "
        "are supported (the best class of each query, or the best pairs of query and class)"
    )
