"""Observers: what range of a tensor its codes should cover, from activations seen batch by batch.

One file an observer. Memory is constant in the number of samples, and but for the moving average no result depends
on how the samples were cut into batches.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

from calibration.schemes import Scheme
from model_repo.runtime.errors import BadInput

from .absolute import AbsMax, TokenAbsMax
from .base import Observer, Range
from .entropy import Entropy
from .mean_square import MeanSquare
from .minmax import MinMax, MovingAverage
from .percentile import Percentile
from .slices import Slices

__all__ = [
    "METHODS",
    "AbsMax",
    "Entropy",
    "MeanSquare",
    "MinMax",
    "MovingAverage",
    "Observer",
    "Percentile",
    "Range",
    "Slices",
    "TokenAbsMax",
    "make_observer",
]

METHODS = ("minmax", "average", "percentile", "entropy", "mse")
"""Names of the ways to choose a range for a whole tensor."""


def make_observer(method: str, scheme: Scheme, *, percentile: float = Percentile.DEFAULT) -> Observer:
    """A new observer of one of METHODS for tensors stored in `scheme`. Raises BadInput for an unknown method, and for
    one that the scheme's format has no use for."""
    known: Mapping[str, Callable[[], Observer]] = {
        "minmax": MinMax,
        "average": MovingAverage,
        "percentile": functools.partial(Percentile, percentile, scheme.symmetric),
        "entropy": functools.partial(Entropy, scheme),
        "mse": functools.partial(MeanSquare, scheme),
    }
    if method not in known:
        raise BadInput(f"calibration method {method!r} is unknown; known: {', '.join(METHODS)}")
    return known[method]()
