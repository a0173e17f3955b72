"""Observers against their definitions in float64 over all elements at once, whatever the batches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.ao.quantization import MovingAverageMinMaxObserver

from calibration.observers import (
    METHODS,
    AbsMax,
    MovingAverage,
    Percentile,
    Slices,
    TokenAbsMax,
    make_observer,
)
from calibration.observers.base import scale_of_range
from calibration.observers.entropy import _divergences, kept_bins
from calibration.observers.histogram import BINS, Histogram
from calibration.observers.mean_square import CANDIDATES
from calibration.schemes import Scheme, dequantize, quantize
from model_repo.runtime.errors import BadInput

from .brute_force import bin_width, int8_error, kl_divergence, magnitude_counts

INT8 = Scheme("int8")


def activations(seed: int, kind: str = "outliers", size: int = 6000) -> np.ndarray:
    """Float32 numbers as layers make them."""
    draw = np.random.default_rng(seed)
    x = draw.standard_normal(size).astype(np.float32)
    if kind == "outliers":
        x[draw.integers(0, size, size // 500)] *= 40
    elif kind == "relu":
        x = np.maximum(x, 0)
    elif kind == "shifted":
        x = x * np.float32(0.1) + 3
    return x


KINDS = ("outliers", "relu", "shifted")


def observed(observer, values: np.ndarray, batches: int = 5):
    """`observer` after it has seen `values` in so many pieces."""
    for piece in np.array_split(values, batches):
        observer.observe(piece)
    return observer


@given(
    st.lists(
        st.lists(st.floats(-(2.0**20), 2.0**20, width=32), min_size=1, max_size=40), min_size=1, max_size=6
    ),
    st.integers(-60, 60),
)
@settings(max_examples=150, deadline=None)
def test_a_histogram_is_that_of_all_elements_at_once(batches: list[list[float]], power: int) -> None:
    arrays = [(np.array(batch, np.float32) * np.float32(2.0**power)).astype(np.float32) for batch in batches]
    every = np.concatenate(arrays)
    histogram = Histogram()
    for array in arrays:
        histogram.observe(array)
    assert histogram.elements == every.size
    assert (histogram.low, histogram.high) == (every.min(), every.max())
    if not every.any() or np.abs(every).max() < 2.0**-114:
        assert histogram.magnitudes.sum() == every.size
        return
    assert histogram.width == bin_width(every)
    np.testing.assert_array_equal(histogram.magnitudes, magnitude_counts(every))
    for side, part in ((histogram.positive, every[every >= 0]), (histogram.negative, every[every < 0])):
        places = np.floor(np.abs(part.astype(np.float64)) / histogram.width).astype(int)
        np.testing.assert_array_equal(side, np.bincount(places, minlength=2 * BINS))


def test_a_range_that_grows_a_millionfold_takes_no_more_memory() -> None:
    histogram = Histogram()
    for power in range(-30, 30):
        histogram.observe(np.full(10, 2.0**power, np.float32))
    assert len(histogram.positive) == 2 * BINS
    assert histogram.magnitudes.sum() == 600
    assert len(histogram.magnitudes) == BINS + 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", [name for name in METHODS if name != "average"])
def test_results_do_not_depend_on_batches_or_their_order(method: str, kind: str) -> None:
    values = activations(2, kind)
    once = observed(make_observer(method, INT8), values, 1).range()
    for order, batches in ((values, 7), (values[::-1], 3), (np.sort(values), 50)):
        again = observed(make_observer(method, INT8), order, batches).range()
        assert (again.low, again.high) == (once.low, once.high)


def test_minmax_is_the_least_and_the_largest() -> None:
    values = activations(3)
    span = observed(make_observer("minmax", INT8), values).range()
    assert (span.low, span.high) == (values.min(), values.max())
    assert span.amax == np.abs(values).max()


def test_the_moving_average_is_torchs() -> None:
    theirs = MovingAverageMinMaxObserver(averaging_constant=0.01)
    ours = MovingAverage()
    for seed in range(20):
        batch = activations(seed, size=300)
        theirs(torch.from_numpy(batch))
        ours.observe(batch)
    span = ours.range()
    np.testing.assert_allclose([span.low, span.high], [theirs.min_val, theirs.max_val], rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("percent", [90.0, 99.0, 99.9, 100.0])
def test_a_percentile_is_within_a_bin_of_the_exact_one(kind: str, percent: float) -> None:
    values = activations(4, kind)
    magnitudes = np.sort(np.abs(values.astype(np.float64)))
    exact = magnitudes[round(len(values) * percent / 100) - 1]
    amax = observed(Percentile(percent), values).range().amax
    # The exact one lies in the last bin that is covered; no number is passed over that should be covered.
    assert exact <= amax <= exact + bin_width(values) or amax == magnitudes[-1]
    assert (magnitudes <= amax).sum() >= round(len(values) * percent / 100)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("percent", [60.0, 95.0, 99.9])
def test_an_asymmetric_percentile_cuts_half_at_each_end(kind: str, percent: float) -> None:
    values = activations(5, kind)
    span = observed(Percentile(percent, symmetric=False), values).range()
    cut = round(len(values) * (100 - percent) / 200)
    exact = np.sort(values.astype(np.float64))
    width = bin_width(values)
    assert exact[cut] - width <= span.low <= exact[cut]
    assert exact[-1 - cut] <= span.high <= exact[-1 - cut] + width


@pytest.mark.parametrize("kind", KINDS)
def test_divergences_are_those_of_the_definition(kind: str) -> None:
    counts = magnitude_counts(activations(6, kind))
    counts[0] = counts[1]
    kept = np.array([128, 129, 200, 511, 1024, len(counts) - 1, len(counts)])
    found = _divergences(counts, 128, kept)
    wanted = [kl_divergence(counts, 128, int(i)) for i in kept]
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-11)


def test_entropy_keeps_the_bins_of_least_divergence() -> None:
    """Every candidate, on few bins."""
    counts = np.bincount(np.random.default_rng(1).geometric(0.04, 3000))
    smaller = counts.copy()
    smaller[0] = smaller[1]
    every = [kl_divergence(smaller, 8, i) for i in range(8, len(counts) + 1)]
    best = min(every)
    assert kept_bins(counts, 8) == 8 + max(
        place for place, value in enumerate(every) if value <= best * (1 + 1e-12)
    )


def test_entropy_clips_outliers_and_keeps_what_is_spread_evenly() -> None:
    values = activations(7)
    clipped = observed(make_observer("entropy", INT8), values).range().amax
    assert clipped < 0.5 * np.abs(values).max()
    even = np.random.default_rng(1).uniform(-1, 1, 20000).astype(np.float32)
    assert observed(make_observer("entropy", INT8), even).range().amax > 0.95


@pytest.mark.parametrize("kind", KINDS)
def test_mse_is_the_least_error_of_all_candidates(kind: str) -> None:
    """Errors of the numbers themselves, not of bins: within what half a bin may change."""
    values = activations(8, kind)
    amax = float(np.abs(values).max())
    errors = [int8_error(values, amax * k / CANDIDATES / 127) for k in range(1, CANDIDATES + 1)]
    span = observed(make_observer("mse", INT8), values).range()
    chosen = float(scale_of_range(span, INT8)[0])
    assert int8_error(values, chosen) <= min(errors) * 1.01
    k = chosen * 127 / amax * CANDIDATES
    assert abs(k - round(k)) < 1e-3


@pytest.mark.parametrize(
    "scheme", [Scheme("uint8", symmetric=False), Scheme("int4"), Scheme("e4m3")], ids=str
)
def test_mse_beats_the_whole_range_in_every_format(scheme: Scheme) -> None:
    values = activations(9)

    def error(method: str) -> float:
        span = observed(make_observer(method, scheme), values).range()
        scales, zero_points = scale_of_range(span, scheme)
        return float(((dequantize(quantize(values, scheme, scales, zero_points)) - values) ** 2).sum())

    assert error("mse") <= error("minmax")


def test_absolute_maxima_of_channels_and_tokens() -> None:
    values = activations(10, size=6000).reshape(20, 15, 20)
    channels, tokens = AbsMax(), TokenAbsMax()
    heads = Slices(1, lambda: make_observer("minmax", INT8))
    for piece in np.array_split(values, 3):
        channels.observe(piece)
        tokens.observe(piece)
        heads.observe(piece)
    np.testing.assert_array_equal(channels.range().high, np.abs(values).max(axis=(0, 1)))
    np.testing.assert_array_equal(heads.range().low, values.min(axis=(0, 2)))
    np.testing.assert_array_equal(heads.range().high, values.max(axis=(0, 2)))
    rows = np.abs(values).max(axis=-1)
    assert tokens.tokens == rows.size
    assert (tokens.smallest, tokens.largest) == (rows.min(), rows.max())
    assert tokens.mean == pytest.approx(rows.astype(np.float64).mean())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(method: str, bad: float) -> None:
    observer = make_observer(method, INT8)
    observer.observe(np.ones((2, 3), np.float32))
    with pytest.raises(BadInput, match="1 of 6 activations are NaN or infinite"):
        observer.observe(np.array([[1, 2, 3], [4, bad, 6]], np.float32))


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_of_zeros_has_a_range_of_zero(method: str) -> None:
    span = observed(make_observer(method, INT8), np.zeros(100, np.float32)).range()
    assert (span.low, span.high) == (0, 0)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_observed_is_an_error(method: str) -> None:
    observer = make_observer(method, INT8)
    observer.observe(np.zeros((0, 4), np.float32))
    with pytest.raises(BadInput, match="no activations were observed"):
        observer.range()


def test_what_cannot_be_calibrated_is_refused() -> None:
    with pytest.raises(BadInput, match="'kl' is unknown; known: minmax, average"):
        make_observer("kl", INT8)
    with pytest.raises(BadInput, match="e4m3 are not"):
        make_observer("entropy", Scheme("e4m3"))
    with pytest.raises(BadInput, match="takes its scales from each block"):
        make_observer("mse", Scheme("mxfp8", "block", 32))
    with pytest.raises(BadInput, match="the percentile is 0"):
        Percentile(0)
