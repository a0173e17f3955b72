"""The values that a quantized weight may take, element by element: scales decided, codes still open."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from calibration.formats import FORMATS, round_to_codes
from calibration.schemes import Quantized, Scheme, dequantize, quantize

Array = npt.NDArray[np.float32]

FIXED_SCALES = ("nvfp4", "mxfp8")
"""Formats whose scales are coarse numbers themselves: they are not searched."""


class Grid:
    """Scales and zero points of a weight [out, in], taken from `quantized`, whose codes do not matter."""

    def __init__(self, quantized: Quantized) -> None:
        self.template = quantized
        self._info = FORMATS[quantized.scheme.format]
        ones = np.ones_like(quantized.codes)
        none = None if quantized.zero_points is None else np.zeros_like(quantized.zero_points)
        # A code of one, with nothing subtracted, means one step.
        offset = 128 if quantized.zero_points is None and quantized.scheme.format == "uint8" else 0
        self.steps = dequantize(replace(quantized, codes=ones + offset, zero_points=none))
        if quantized.zero_points is None:
            self.zeros: Array = np.full_like(self.steps, offset)
        else:
            zero_codes = dequantize(replace(quantized, codes=np.zeros_like(quantized.codes)))
            self.zeros = np.rint(-zero_codes / self.steps).astype(np.float32)

    def codes(self, weight: npt.NDArray[np.floating[Any]], columns: slice | int = slice(None)) -> Array:
        """Codes, as float32, of the numbers of these columns: what `quantize` would store."""
        scaled = weight.astype(np.float32) / self.steps[:, columns]
        if self._info.integer:
            scaled = np.rint(scaled) + self.zeros[:, columns]
        scheme = self.template.scheme
        return round_to_codes(scaled, scheme.format, scheme.lowest).astype(np.float32)

    def values(self, weight: npt.NDArray[np.floating[Any]], columns: slice | int = slice(None)) -> Array:
        """The nearest values of the grid."""
        rounded: Array = (self.codes(weight, columns) - self.zeros[:, columns]) * self.steps[:, columns]
        return rounded

    def quantized(self, weight: npt.NDArray[np.floating[Any]]) -> Quantized:
        """`weight` rounded to the nearest values."""
        return self.with_codes(self.codes(weight))

    def with_codes(self, codes: npt.NDArray[np.floating[Any]]) -> Quantized:
        """These codes [out, in], which are codes of the format, with the grid's scales."""
        return replace(self.template, codes=codes.astype(self._info.codes))


def grid_of(weight: npt.NDArray[np.floating[Any]], scheme: Scheme) -> Grid:
    """The grid that round to nearest uses for `weight` [out, in]: blocks and channels as `quantize` lays them."""
    return Grid(quantize(weight, scheme))


def scaled_grid(weight: npt.NDArray[np.floating[Any]], scheme: Scheme, factors: Array) -> Grid:
    """The grid of `weight` with each scale multiplied by a factor (of the scales' shape): ranges made smaller."""
    plain = quantize(weight, scheme)
    return Grid(replace(plain, scales=(plain.scales * factors).astype(np.float32)))
