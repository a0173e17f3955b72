"""Quantization schemes: a number format, which numbers share a scale, and whether zero has a code of its own.

A number is stored as code = round(number / scale) + zero_point and means (code - zero_point) * scale. The division
is in float32, rounding is half to even, and codes beyond the range become its ends: what ONNX's QuantizeLinear and
TensorRT compute. Scales without given ones come from the largest absolute value (amax), or, asymmetric, from the
range widened to hold zero:

| format | symmetric | asymmetric |
| --- | --- | --- |
| int8 | -127 to 127 (as TensorRT), scale = amax / 127 | -128 to 127, scale = range / 255 |
| uint8 | 1 to 255 around zero point 128, scale = amax / 127 | 0 to 255, scale = range / 255 |
| int4 | -8 to 7, scale = max(largest / 7, -smallest / 8) | -8 to 7, scale = range / 15 |
| int4, signed scales | -8 to 7, scale = e / -8 with e the number of largest magnitude | - |
| e4m3 | -448 to 448, scale = amax / 448 | - |
| nvfp4 | E2M1 (-6 to 6) in blocks of 16; scale = E4M3(amax / 6 / tensor scale), tensor scale = amax / 2688 | - |
| mxfp8 | E4M3 in blocks of 32; scale = the least power of two not below amax / 448 | - |

NVFP4: NVIDIA, Pretraining Large Language Models with NVFP4 (arXiv:2509.25149). MXFP8: OCP Microscaling Formats 1.0,
with the exponent rounded up so that nothing is clipped (Mishra et al. 2025, arXiv:2506.08027). Where all is zero the
scale is 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt

from model_repo.runtime.errors import BadInput

from .formats import E2M1_LARGEST, E4M3_LARGEST, FORMATS, Format, power_of_two_at_least, round_to_codes

Granularity = Literal["tensor", "channel", "block", "token"]
Array = npt.NDArray[np.float32]
Codes = npt.NDArray[Any]

_UINT8_MIDDLE = 128


@dataclass(frozen=True)
class Scheme:
    """How a tensor is quantized. Raises BadInput for combinations that mean nothing.

    `granularity`: who shares a scale. tensor: everything; channel: one index of an axis; block: `block` neighbours
    along an axis; token: one row of the last axis (a dynamic scale of activations). `signed_scales`: of symmetric int4,
    may be negative, so that -8, the code without a counterpart, is always used: ONNX Runtime's rule.
    """

    format: Format
    granularity: Granularity = "tensor"
    block: int | None = None
    symmetric: bool = True
    signed_scales: bool = False

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise BadInput(f"format {self.format!r} is unknown; known: {', '.join(FORMATS)}")
        known = ("tensor", "channel", "block", "token")
        if self.granularity not in known:
            raise BadInput(f"granularity {self.granularity!r} is unknown; known: {', '.join(known)}")
        info = FORMATS[self.format]
        if info.block is not None and (self.granularity, self.block) != ("block", info.block):
            raise BadInput(f"{self.format} has blocks of {info.block}; given: {self}")
        if (self.granularity == "block") != (self.block is not None):
            raise BadInput(f"granularity 'block' goes with a block size, and no other does; given: {self}")
        if self.block is not None and self.block < 2:
            raise BadInput(f"a block of {self.block}; give 2 or more")
        if not self.symmetric and not info.integer:
            raise BadInput(f"{self.format} has no zero point; give symmetric=True")
        if self.signed_scales and (self.format, self.symmetric) != ("int4", True):
            raise BadInput(
                f"signed scales are for symmetric int4; given: {self.format}, symmetric={self.symmetric}"
            )

    @property
    def bits(self) -> int:
        """Bits of a stored code."""
        return FORMATS[self.format].bits

    @property
    def lowest(self) -> float:
        """The lowest code in use, before scaling."""
        if self.symmetric and self.format == "int8":
            return -127
        if self.symmetric and self.format == "uint8":
            return 1
        return FORMATS[self.format].lowest

    @property
    def highest(self) -> float:
        """The highest code in use, before scaling."""
        return FORMATS[self.format].highest

    def __str__(self) -> str:
        where = f"block of {self.block}" if self.granularity == "block" else f"per {self.granularity}"
        kind = "" if self.symmetric else ", asymmetric"
        return f"{self.format} {where}{kind}{', signed scales' if self.signed_scales else ''}"


@dataclass(frozen=True)
class Quantized:
    """A quantized tensor.

    codes: the tensor's shape, in the format's dtype (int4: int8 of -8 to 7). scales: float32, of shape () per tensor,
    [channels] per channel, the tensor's shape with `axis` divided by the block (rounded up) per block, the
    shape without the last axis per token. zero_points: of the scales' shape, int32 in units of codes; None
    stands for zero, for symmetric uint8 for 128. axis: the channels', or the one that blocks run along.
    tensor_scale: NVFP4's factor of all scales.
    """

    codes: Codes
    scales: Array
    zero_points: npt.NDArray[np.int32] | None
    scheme: Scheme
    axis: int | None = None
    tensor_scale: float = 1.0


def quantize(
    array: npt.ArrayLike,
    scheme: Scheme,
    scales: npt.ArrayLike | None = None,
    zero_points: npt.ArrayLike | None = None,
    *,
    axis: int | None = None,
    tensor_scale: float | None = None,
) -> Quantized:
    """`array` (float, any shape) in `scheme`; see the module for rounding and for the scales when none are given.

    axis: of the channels (default 0) or along which blocks run (default -1): right for weights [out, in]. Raises
    BadInput: NaN or infinity in `array`; scales that are not finite, zero, of another shape, or negative without
    `signed_scales`; an axis that the array lacks.
    """
    numbers = np.asarray(array, dtype=np.float32)
    _check_finite(numbers)
    axis = _axis(numbers.shape, scheme, axis)
    if scales is None:
        found, zeros, tensor_scale = _own_scales(numbers, scheme, axis)
    else:
        shape = scales_shape(numbers.shape, scheme, axis)
        found = _checked_scales(scales, shape, scheme)
        zeros = None if zero_points is None else np.asarray(zero_points, np.int32)
        if zeros is not None and zeros.shape != shape:
            raise BadInput(f"zero points of shape {list(zeros.shape)}; {scheme} takes {list(shape)}")
        if zeros is not None and scheme.symmetric:
            raise BadInput(f"zero points are given, and {scheme} is symmetric; give symmetric=False")
        if zeros is None and not scheme.symmetric:
            raise BadInput(f"{scheme} needs a zero point for each scale; none is given")
    whole = np.float32(1.0 if tensor_scale is None else tensor_scale)
    spread = _spread(found, numbers.shape, scheme, axis) * whole
    scaled = numbers / np.where(spread == 0, np.float32(1), spread)
    if zeros is None:
        scaled = np.rint(scaled) + np.float32(_UINT8_MIDDLE) if scheme.format == "uint8" else scaled
    else:
        scaled = np.rint(scaled) + _spread(zeros, numbers.shape, scheme, axis)
    codes = round_to_codes(scaled.astype(np.float32), scheme.format, scheme.lowest)
    return Quantized(codes, found, zeros, scheme, axis, float(whole))


def dequantize(quantized: Quantized) -> Array:
    """What the codes mean, in float32: (code - zero_point) * scale."""
    scheme, shape = quantized.scheme, quantized.codes.shape
    numbers = quantized.codes.astype(np.float32)
    if quantized.zero_points is not None:
        numbers = numbers - _spread(quantized.zero_points, shape, scheme, quantized.axis)
    elif scheme.format == "uint8":
        numbers = numbers - np.float32(_UINT8_MIDDLE)
    scales = _spread(quantized.scales, shape, scheme, quantized.axis) * np.float32(quantized.tensor_scale)
    product: Array = (numbers * scales).astype(np.float32)
    return product


def scales_shape(shape: tuple[int, ...], scheme: Scheme, axis: int | None = None) -> tuple[int, ...]:
    """The shape of the scales of a tensor of `shape`; `axis` as for `quantize`."""
    axis = _axis(shape, scheme, axis)
    if scheme.granularity == "token":
        return shape[:-1]
    if axis is None:
        return ()
    if scheme.granularity == "channel":
        return (shape[axis],)
    assert scheme.block is not None
    return (*shape[:axis], -(-shape[axis] // scheme.block), *shape[axis + 1 :])


def _axis(shape: tuple[int, ...], scheme: Scheme, axis: int | None) -> int | None:
    """The axis counted from the front; None where the scheme has none."""
    if scheme.granularity == "tensor":
        return None
    if scheme.granularity == "token":
        axis = -1
    elif axis is None:
        axis = 0 if scheme.granularity == "channel" else -1
    if not -len(shape) <= axis < len(shape):
        raise BadInput(f"axis {axis} of a tensor of shape {list(shape)}, to be quantized as {scheme}")
    return axis % len(shape)


def _own_scales(
    numbers: Array, scheme: Scheme, axis: int | None
) -> tuple[Array, npt.NDArray[np.int32] | None, float | None]:
    """Scales, zero points and tensor scale from the range of `numbers`."""
    smallest, largest = _extremes(numbers, scheme, axis)
    if not scheme.symmetric:
        low, high = FORMATS[scheme.format].lowest, FORMATS[scheme.format].highest
        scales = _usable((largest - smallest) / np.float32(high - low))
        zeros = np.clip(np.rint(np.float32(low) - smallest / scales), low, high)
        return scales, zeros.astype(np.int32), None
    amax = np.maximum(largest, -smallest)
    if scheme.signed_scales:
        return _usable(np.where(largest > -smallest, largest, smallest) / np.float32(-8)), None, None
    if scheme.format == "int4":
        return _usable(np.maximum(largest / np.float32(7), -smallest / np.float32(8))), None, None
    if scheme.format == "nvfp4":
        whole = _usable(np.float32(amax.max(initial=0)) / np.float32(E2M1_LARGEST * E4M3_LARGEST))
        within = amax / np.float32(E2M1_LARGEST) / whole
        rounded = np.minimum(within, np.float32(E4M3_LARGEST)).astype(ml_dtypes.float8_e4m3fn)
        return _usable(rounded.astype(np.float32)), None, float(whole)
    if scheme.format == "mxfp8":
        exact = (amax / np.float32(E4M3_LARGEST)).astype(np.float32)
        return np.where(amax > 0, power_of_two_at_least(exact), np.float32(1)), None, None
    return _usable(amax / np.float32(E4M3_LARGEST if scheme.format == "e4m3" else 127)), None, None


def _extremes(numbers: Array, scheme: Scheme, axis: int | None) -> tuple[Array, Array]:
    """Smallest and largest number, zero included, of everything that shares a scale."""
    if scheme.granularity == "block":
        assert axis is not None
        starts = np.arange(0, numbers.shape[axis], scheme.block)
        low = np.minimum.reduceat(numbers, starts, axis)
        high = np.maximum.reduceat(numbers, starts, axis)
    elif scheme.granularity == "token":
        low, high = numbers.min(-1, initial=0), numbers.max(-1, initial=0)
    else:
        others = tuple(place for place in range(numbers.ndim) if place != axis)
        low, high = numbers.min(others, initial=0), numbers.max(others, initial=0)
    zero = np.float32(0)
    return np.minimum(low, zero).astype(np.float32), np.maximum(high, zero).astype(np.float32)


def _usable(scales: npt.NDArray[np.floating[Any]] | np.floating[Any]) -> Array:
    """1 where a range holds nothing but zeros, or numbers so small that their scale is denormal."""
    tiny = np.finfo(np.float32).tiny
    usable: Array = np.where(np.abs(scales) < tiny, np.float32(1), scales).astype(np.float32)
    return usable


def _spread(values: npt.NDArray[Any], shape: tuple[int, ...], scheme: Scheme, axis: int | None) -> Array:
    """Scales or zero points, one for each element (or broadcastable to it), in float32."""
    numbers = values.astype(np.float32)
    if scheme.granularity == "token":
        return numbers[..., None]
    if axis is None:
        return numbers
    if scheme.granularity == "channel":
        return numbers.reshape([-1 if place == axis else 1 for place in range(len(shape))])
    assert scheme.block is not None
    return np.repeat(numbers, scheme.block, axis).take(np.arange(shape[axis]), axis)


def _checked_scales(scales: npt.ArrayLike, shape: tuple[int, ...], scheme: Scheme) -> Array:
    """`scales` in float32. Raises BadInput with the first that cannot be used."""
    array = np.asarray(scales, dtype=np.float32)
    if array.shape != shape:
        raise BadInput(f"scales of shape {list(array.shape)}; {scheme} takes {list(shape)}")
    wrong = ~(np.isfinite(array) & ((array > 0) | (scheme.signed_scales & (array < 0))))
    if wrong.any():
        place = tuple(int(index) for index in np.argwhere(wrong)[0])
        raise BadInput(
            f"scale {list(place)} of {scheme} is {array[place]}; scales are finite and above zero (a dead channel "
            "has scale 1)"
        )
    return array


def _check_finite(numbers: Array) -> None:
    if not np.isfinite(numbers).all():
        wrong = ~np.isfinite(numbers)
        place = tuple(int(index) for index in np.argwhere(wrong)[0])
        raise BadInput(
            f"{int(wrong.sum())} of {numbers.size} numbers to quantize are NaN or infinite, the first at {list(place)}"
        )
