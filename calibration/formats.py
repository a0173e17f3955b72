"""Number formats of quantized tensors: what a code means, which codes are used, how a number becomes one.

Rounding is to the nearest code, ties to the even one; what lies beyond the range becomes the nearest end of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt

Format = Literal["int8", "uint8", "int4", "e4m3", "nvfp4", "mxfp8"]

E4M3_LARGEST = 448.0
E2M1_LARGEST = 6.0
NVFP4_BLOCK = 16
MXFP8_BLOCK = 32


@dataclass(frozen=True)
class FormatInfo:
    """`codes`: numpy dtype of the codes in memory (int4 takes a byte there). `bits`: of a code as it is stored.

    `lowest`, `highest`: the ends of the range, as numbers before scaling. `block`: fixed block of the formats that
    are defined with one.
    """

    codes: np.dtype[Any]
    bits: int
    lowest: float
    highest: float
    integer: bool
    block: int | None = None


FORMATS: Mapping[Format, FormatInfo] = {
    "int8": FormatInfo(np.dtype(np.int8), 8, -128, 127, True),
    "uint8": FormatInfo(np.dtype(np.uint8), 8, 0, 255, True),
    "int4": FormatInfo(np.dtype(np.int8), 4, -8, 7, True),
    "e4m3": FormatInfo(np.dtype(ml_dtypes.float8_e4m3fn), 8, -E4M3_LARGEST, E4M3_LARGEST, False),
    "nvfp4": FormatInfo(
        np.dtype(ml_dtypes.float4_e2m1fn), 4, -E2M1_LARGEST, E2M1_LARGEST, False, NVFP4_BLOCK
    ),
    "mxfp8": FormatInfo(
        np.dtype(ml_dtypes.float8_e4m3fn), 8, -E4M3_LARGEST, E4M3_LARGEST, False, MXFP8_BLOCK
    ),
}


def round_to_codes(
    numbers: npt.NDArray[np.float32], name: Format, lowest: float | None = None
) -> npt.NDArray[Any]:
    """Codes of scaled numbers: `numbers` rounded half to even and held within the format's range.

    `lowest` narrows the range from below (symmetric int8 uses -127 to 127).
    """
    info = FORMATS[name]
    bounded = np.clip(numbers, info.lowest if lowest is None else lowest, info.highest)
    if info.integer:
        return np.rint(bounded).astype(info.codes)
    return bounded.astype(info.codes)  # ml_dtypes rounds half to even; nothing is beyond the range any more


def power_of_two_at_least(numbers: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The least power of two that is not below each positive number, within E8M0's 2^-127 to 2^127.

    2^-127 is denormal in float32; it is rounded up to 2^-126 so that no hardware flushes it to zero.
    """
    fraction, exponent = np.frexp(numbers)
    exponent = np.where(fraction == 0.5, exponent - 1, exponent)
    powers: npt.NDArray[np.float32] = np.ldexp(np.float32(1), np.clip(exponent, -126, 127)).astype(np.float32)
    return powers
