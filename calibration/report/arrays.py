"""Models of named tensors: how far each output is from float32's; for class logits also the same choice.

cosine   = of each row (what lies at one place of axis 0) of an output; mean and least
relative = norm of the difference over the norm of the reference, over all rows together
top-1    = share of rows with the same largest element, for outputs [rows, classes]; with the right labels also
           the share of rows that each side has right
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from calibration.batches import Batches, Model

from .subject import Subject

Array = npt.NDArray[Any]


def compare_arrays(
    candidate: Subject,
    reference: Subject | None,
    model: Model,
    samples: Sequence[Mapping[str, Array]],
    labels: npt.NDArray[np.int64] | None = None,
    advanced: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Figures by output, over all samples. `labels`: the right class of each. Without a reference only what labels
    say."""
    batches = Batches(model, samples)
    sides = [side for side in (candidate, reference) if side is not None]
    results: list[dict[str, list[Array]]] = [{} for _ in sides]
    for done, batch in enumerate(batches, 1):
        for side, kept in zip(sides, results, strict=True):
            for name, array in side.run(batch.feeds, batch.tokens).items():
                kept.setdefault(name, []).append(array)
        advanced(done, len(batches))
    outputs = {
        name: output_figures(
            [np.concatenate([_rows(array) for array in kept[name]]) for kept in results], labels
        )
        for name, arrays in results[0].items()
        if arrays[0].dtype.kind == "f"
    }
    return {"samples": len(samples), "outputs": {name: found for name, found in outputs.items() if found}}


def output_figures(sides: Sequence[Array], labels: npt.NDArray[np.int64] | None) -> dict[str, float]:
    """Of one output [rows, width], the candidate's and, if there is one, the reference's."""
    found = sides[0].astype(np.float64)
    figures: dict[str, float] = {}
    classes = found.shape[1] > 1
    if classes and labels is not None and len(labels) == len(found):
        figures["accuracy"] = float((found.argmax(axis=1) == labels).mean())
    if len(sides) == 1:
        return figures
    wanted = sides[1].astype(np.float64)
    lengths = np.linalg.norm(wanted, axis=1) * np.linalg.norm(found, axis=1)
    cosines = (wanted * found).sum(axis=1)[lengths > 0] / lengths[lengths > 0]
    figures |= {
        "mean_cosine": float(cosines.mean()) if cosines.size else 1.0,
        "min_cosine": float(cosines.min()) if cosines.size else 1.0,
        "relative": float(np.linalg.norm(wanted - found)) / max(float(np.linalg.norm(wanted)), 1e-30),
    }
    if classes:
        figures["top1"] = float((wanted.argmax(axis=1) == found.argmax(axis=1)).mean())
    if "accuracy" in figures and labels is not None:
        figures["reference_accuracy"] = float((wanted.argmax(axis=1) == labels).mean())
    return figures


def _rows(array: Array) -> Array:
    return array.reshape(array.shape[0] if array.ndim > 1 else 1, -1)
