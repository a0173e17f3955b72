"""Codes with scales of groups of inputs, as three formats have them, as `Quantized`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from calibration.formats import FORMATS, Format
from calibration.schemes import Quantized, Scheme
from model_repo.runtime.errors import BadInput

Array = npt.NDArray[Any]

INTEGERS: dict[int, Format] = {4: "int4", 8: "int8"}
"""Bits -> format."""


def grouped(codes: Array, zeros: Array | None, scales: Array, bits: int, where: str) -> Quantized:
    """`codes` [out, in] of `bits` bits, signed; `zeros` of the same unit, or None; `scales` and `zeros` [out, groups].

    One group is a scale a channel. Zero points that are all zero are left out: the scheme is symmetric. Raises
    BadInput when the groups are not of one size, or a scale is zero or not finite; `where` names the weight.
    """
    out, width = codes.shape
    groups = scales.shape[1] if scales.ndim == 2 else 1
    scales = scales.reshape(out, groups).astype(np.float32) if scales.size == out * groups else scales
    if scales.shape != (out, groups) or width % groups:
        raise BadInput(f"{where}: scales of shape {list(scales.shape)} do not fit a weight of {[out, width]}")
    wrong = ~(np.isfinite(scales) & (scales != 0))
    if wrong.any():
        raise BadInput(f"{where}: {int(wrong.sum())} scales are zero or not finite; the checkpoint is broken")
    negative = scales < 0
    if negative.any():
        raise BadInput(
            f"{where}: {int(negative.sum())} scales are negative; ONNX's operators take positive ones"
        )
    symmetric = zeros is None or not zeros.any()
    kind = INTEGERS[bits]
    if groups == 1:
        scheme = Scheme(kind, "channel", symmetric=symmetric)
    else:
        scheme = Scheme(kind, "block", width // groups, symmetric)
    shape = (out,) if groups == 1 else (out, groups)
    points = None if symmetric or zeros is None else zeros.reshape(shape).astype(np.int32)
    stored = codes.astype(FORMATS[kind].codes)
    return Quantized(stored, scales.reshape(shape), points, scheme, 0 if groups == 1 else 1)


def signed(codes: Array, bits: int) -> npt.NDArray[np.int32]:
    """Unsigned codes shifted to the signed range; differences between codes stay what they were."""
    if bits not in INTEGERS:
        raise BadInput(f"weights of {bits} bits are not carried; {' and '.join(map(str, INTEGERS))} are")
    shifted: npt.NDArray[np.int32] = codes.astype(np.int32) - (1 << (bits - 1))
    return shifted
