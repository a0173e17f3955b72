"""One observer for each slice of a tensor: a range for each head of a key cache, for each channel."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .base import Array, Observer, Range, nothing_observed


class Slices:
    """Every index along `axis` has an observer of its own, made by `make`; `range` is of shape [slices]."""

    def __init__(self, axis: int, make: Callable[[], Observer]) -> None:
        self._axis = axis
        self._make = make
        self._observers: list[Observer] = []

    def observe(self, array: Array) -> None:
        """See `Observer`. The number of slices is that of the first batch."""
        slices = np.moveaxis(array, self._axis, 0)
        if not self._observers:
            self._observers = [self._make() for _ in slices]
        for observer, part in zip(self._observers, slices, strict=True):
            observer.observe(part)

    def range(self) -> Range:
        """See `Observer`."""
        if not self._observers:
            raise nothing_observed()
        found = [observer.range() for observer in self._observers]
        return Range(np.stack([span.low for span in found]), np.stack([span.high for span in found]))
