"""HQQ: scales and zero points that suit most weights and let a few be far off; no data needed.

Badri and Shaji 2023, Half-Quadratic Quantization (mobiusml.github.io/hqq_blog). Minimizes the sum of |w - w_q|^p,
p = 0.7, by turns, with beta growing:

    e  <-  shrink(w - w_q),   shrink(x) = sign(x) max(|x| - |x|^(p - 1) / beta, 0)
    z  <-  mean of q - (w - e) / s                           where there is a zero point
    s  <-  sum of (q - z) (w - e) / sum of (q - z)^2

over the weights that share a scale. The paper moves only z, which is a number with a fraction there; ONNX's is whole,
so the scale moves by the same rule. Both start from round to nearest: from smaller scales the same objective ends with
ranges that clip more than a model bears. Differences are measured in steps of the scale, so that the result does
not depend on the weights' unit. Of all turns the best by the sum of |w - w_q|^p is taken, for each scale by
itself; round to nearest is among them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from calibration.formats import FORMATS
from calibration.schemes import Quantized, Scheme

from .grid import FIXED_SCALES, Grid, grid_of

Array = npt.NDArray[np.floating[Any]]

POWER = 0.7
BETA, GROWTH = 10.0, 1.01
TURNS = 20


def hqq(weight: Array, scheme: Scheme) -> Quantized:
    """`weight` [out, in] quantized. nvfp4 and mxfp8, whose scales are coarse numbers, are rounded to nearest."""
    weight = weight.astype(np.float32)
    best = grid_of(weight, scheme)
    if scheme.format in FIXED_SCALES:
        return best.quantized(weight)
    unit = best.steps
    least = _cost(best, weight, unit, scheme)
    candidate, beta = best, BETA
    for _ in range(TURNS):
        candidate = _moved(candidate, weight, beta, scheme)
        cost = _cost(candidate, weight, unit, scheme)
        better = cost < least
        best = Grid(_chosen(better, candidate.template, best.template))
        least = np.where(better, cost, least)
        beta *= GROWTH
    return best.quantized(weight)


def _shrunk(gap: Array, beta: float) -> Array:
    """The proximal operator of |x|^p."""
    size = np.abs(gap)
    with np.errstate(divide="ignore"):
        shrunk: Array = np.sign(gap) * np.maximum(size - size ** (POWER - 1) / beta, 0)
    return shrunk


def _moved(grid: Grid, weight: Array, beta: float, scheme: Scheme) -> Grid:
    """The grid after one turn."""
    old = grid.template
    counted = grid.codes(weight) - grid.zeros
    exact = weight / grid.steps
    target = exact - _shrunk(exact - counted, beta)
    zeros = old.zero_points
    if zeros is not None:
        info = FORMATS[scheme.format]
        shift = np.rint(group_sums(counted - target, scheme) / group_sums(np.ones_like(target), scheme))
        zeros = np.clip(zeros + shift, info.lowest, info.highest).astype(np.int32)
        counted = counted - (Grid(replace(old, zero_points=zeros)).zeros - grid.zeros)
    squares = group_sums(counted * counted, scheme)
    ratio = group_sums(counted * target, scheme) / np.where(squares > 0, squares, 1)
    scales = np.where(ratio > 0, old.scales * ratio, old.scales).astype(np.float32)
    return Grid(replace(old, scales=scales, zero_points=zeros))


def _chosen(better: npt.NDArray[np.bool_], new: Quantized, old: Quantized) -> Quantized:
    """Scale by scale, the new or the old."""
    zeros = None
    if old.zero_points is not None:
        assert new.zero_points is not None
        zeros = np.where(better, new.zero_points, old.zero_points).astype(np.int32)
    return replace(old, scales=np.where(better, new.scales, old.scales).astype(np.float32), zero_points=zeros)


def _cost(grid: Grid, weight: Array, unit: Array, scheme: Scheme) -> Array:
    """Sum of |w - w_q|^p of the weights behind each scale, in units of the first grid's steps."""
    return group_sums(np.abs((grid.values(weight) - weight) / unit) ** POWER, scheme)


def group_sums(values: Array, scheme: Scheme) -> Array:
    """Sums of values [out, in] over everything that shares a scale, of the scales' shape."""
    if scheme.granularity == "block":
        assert scheme.block is not None
        blocks: Array = np.add.reduceat(values, np.arange(0, values.shape[1], scheme.block), axis=1)
        return blocks
    if scheme.granularity == "channel":
        rows: Array = values.sum(axis=1)
        return rows
    return np.asarray(values.sum())
