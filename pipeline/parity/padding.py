"""Tensors of padded texts beside those of the same texts packed, or computed one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.notes import TOKENS

Array = npt.NDArray[Any]


def packed(padded: Sequence[Array], masks: Sequence[Array], packing: str) -> list[Array] | None:
    """Runs of padded texts [batch, length, ...] as a packed graph has them (`notes.PACKED`); None when they are none.

    `masks`: attention_mask [batch, length] of each run. A packed graph has two rows at least; what is in one of no
    text is not known, and masked.
    """
    found: list[Array] = []
    for array, mask in zip(padded, masks, strict=True):
        if array.shape[:2] != mask.shape:
            return None
        live = mask.astype(np.bool_)
        if packing != TOKENS:
            found.append(
                np.where(live.reshape(*live.shape, *[1] * (array.ndim - 2)), array, 0).astype(array.dtype)
            )
            continue
        rows = array[live]
        missing = max(0, 2 - len(rows))
        found.append(rows if not missing else _with_unknown(rows, [(0, missing)]))
    return found


def together(texts: Sequence[Array], lengths: Sequence[int]) -> Array | None:
    """What a run of all texts padded should give, from each text's own [1, ...]; masked at padding.

    Axes that are as long as each text, in tokens, grow to the longest. None when the rest is not of one shape.
    """
    axes = {array.ndim for array in texts}
    if len(axes) != 1 or axes == {0} or any(array.shape[0] != 1 for array in texts):
        return None
    (rank,) = axes
    longest = max(lengths)
    by_token = [
        all(array.shape[axis] == length for array, length in zip(texts, lengths, strict=True))
        for axis in range(rank)
    ]
    grown = [
        _with_unknown(
            array,
            [(0, longest - size if grows else 0) for size, grows in zip(array.shape, by_token, strict=True)],
        )
        for array in texts
    ]
    if len({array.shape for array in grown}) != 1:
        return None
    mask = np.concatenate([np.ma.getmaskarray(array) for array in grown])
    return np.ma.MaskedArray(np.concatenate([np.ma.getdata(array) for array in grown]), mask=mask)


def _with_unknown(array: Array, behind: Sequence[tuple[int, int]]) -> Array:
    """`array` with masked elements behind it along its first axes."""
    widths = [*behind, *[(0, 0)] * (array.ndim - len(behind))]
    known = np.pad(np.zeros(array.shape, np.bool_), widths, constant_values=True)
    return np.ma.MaskedArray(np.pad(array, widths), mask=known)
