"""Beside the calibrators of ONNX Runtime (run here) and of ModelOpt 0.47.0 (run once; its rules restated).

ModelOpt is no dependency of the tests: with what it imports it takes 216 MB, and one entropy range a minute.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from onnxruntime.quantization.calibrate import HistogramCollector

from calibration.observers import make_observer
from calibration.observers.entropy import kept_bins
from calibration.schemes import Scheme

from .brute_force import kl_divergence
from .peer_data import BATCHES

INT8 = Scheme("int8")
STRIDE, FIRST_BIN = 8, 128
PAGE = Path(__file__).resolve().parents[3] / "docs/calibration.md"

MODELOPT = {
    "normal": {"max": 4.746011734008789, "entropy": 3.669452428817749, "percentile": 3.721412420272827},
    "outliers": {"max": 34.63241958618164, "entropy": 17.857341766357422, "percentile": 26.447805404663086},
    "gated": {"max": 22.66179656982422, "entropy": 11.065330505371094, "percentile": 19.829071044921875},
    "relu": {"max": 3.9114034175872803, "entropy": 3.397016763687134, "percentile": 3.586850166320801},
    "growing": {"max": 16.935453414916992, "entropy": 12.248281478881836, "percentile": 13.779316902160645},
}
"""nvidia-modelopt 0.47.0, torch.quantization.calib: MaxCalibrator, and HistogramCalibrator(8, None, False) with
compute_amax("entropy", stride=8) and ("percentile") at its default of 99.99, over BATCHES.

Its "mse" is left out: it hands the number of bits to the quantizer's parameter `bias`, and so chooses the first
candidate (0.23 of a normal distribution's 4.7).
"""


def ours(method: str, name: str) -> float:
    observer = make_observer(method, INT8)
    for batch in BATCHES[name]:
        observer.observe(batch)
    return float(observer.range().amax)


def exact_percentile(name: str, percent: float) -> float:
    """The least magnitude that `percent` % of all elements do not exceed."""
    magnitudes = np.sort(np.abs(np.concatenate(BATCHES[name]).astype(np.float64)))
    return float(magnitudes[int(np.ceil(len(magnitudes) * percent / 100 - 1e-9)) - 1])


def modelopt_histogram(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Its rule: 2048 bins over the first batch; a wider batch adds bins of that width."""
    counts, edges, bins = None, None, 2048
    for batch in BATCHES[name]:
        x = torch.from_numpy(np.abs(batch) if batch.min() < 0 else batch)
        largest = x.max()
        if counts is None or edges is None:
            counts, edges = (
                torch.histc(x, bins=bins, min=0, max=float(largest)),
                torch.linspace(0, float(largest), bins + 1),
            )
            continue
        if largest > edges[-1]:
            width = edges[1] - edges[0]
            bins = int((largest / width).ceil().item())
            edges = torch.arange(0, float(largest + width), float(width))
        added = torch.histc(x, bins=bins, min=0, max=float(edges[-1]))
        added[: counts.numel()] += counts
        counts = added
    assert counts is not None
    assert edges is not None
    return counts.int().numpy(), edges.numpy()


@pytest.mark.parametrize("name", BATCHES)
def test_the_whole_range_is_modelopts(name: str) -> None:
    assert ours("minmax", name) == MODELOPT[name]["max"]


@pytest.mark.parametrize("name", BATCHES)
def test_percentiles_of_others_cut_off_more_than_they_say(name: str) -> None:
    """Both take the lower edge of the bin that the percentile falls into, we take the upper one."""
    exact = exact_percentile(name, 99.99)
    counts, edges = modelopt_histogram(name)
    theirs = float(edges[np.searchsorted(np.cumsum(counts / counts.sum()), 0.9999)])
    assert theirs == pytest.approx(MODELOPT[name]["percentile"], rel=1e-6)
    assert theirs <= exact <= ours("percentile", name)
    assert onnxruntime_range("percentile", name, 99.99, bins=2048) <= exact


def onnxruntime_range(method: str, name: str, percent: float, bins: int) -> float:
    """amax of ONNX Runtime's collector, as its calibrators make it."""
    collector = HistogramCollector(method, True, bins, 128, percent, "same")
    with contextlib.redirect_stdout(io.StringIO()):
        for batch in BATCHES[name]:
            collector.collect({"x": batch})
        low, high, *_ = collector.compute_collection_result()["x"]
    return float(max(abs(low), abs(high)))


@pytest.mark.parametrize("name", ["relu", "outliers", "gated"])
def test_the_entropy_rule_is_modelopts_on_its_own_bins(name: str) -> None:
    """Its search over its histogram, restated: its number. Ours is over bins of another width."""
    counts, edges = modelopt_histogram(name)
    counts = counts.copy()
    counts[0] = counts[1]
    best, found = np.inf, 0
    for kept in range(FIRST_BIN, len(counts) + 1, STRIDE):
        divergence = kl_divergence(counts, 128, kept)
        if divergence <= best:
            best, found = divergence, kept
    assert float(edges[found]) == pytest.approx(MODELOPT[name]["entropy"], rel=1e-6)


@pytest.mark.parametrize("name", BATCHES)
def test_our_entropy_on_modelopts_bins_is_as_good_as_its_own(name: str) -> None:
    """Every candidate instead of every eighth one: never a larger divergence."""
    counts, edges = modelopt_histogram(name)
    kept = kept_bins(counts.astype(np.int64), 128)
    theirs = int(np.argmin(np.abs(edges - MODELOPT[name]["entropy"])))
    changed = counts.copy()
    changed[0] = changed[1]
    assert kl_divergence(changed, 128, kept) <= kl_divergence(changed, 128, theirs) * (1 + 1e-9)


@pytest.mark.parametrize("name", ["normal", "outliers", "gated", "relu"])
def test_entropy_of_onnxruntime_by_default_has_one_candidate_a_batch(name: str) -> None:
    """128 bins for 128 codes: the first batch's whole range is the only choice that it has."""
    collector = HistogramCollector("entropy", False, 128, 128, 99.99, "same")
    with contextlib.redirect_stdout(io.StringIO()):
        collector.collect({"x": BATCHES[name][0]})
        low, high, *_ = collector.compute_collection_result()["x"]
    batch = BATCHES[name][0]
    assert max(abs(low), abs(high)) >= np.abs(batch).max() * (1 - 1e-6)
    assert ours("entropy", name) < 0.95 * np.abs(np.concatenate(BATCHES[name])).max()


def test_the_table_in_the_documentation_is_this_one() -> None:
    rows = [
        line.split("|")[1:-1]
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if line.startswith("| ")
    ]
    printed = {
        cells[0].strip(): [float(cell) for cell in cells[1:]] for cells in rows if cells[0].strip() in BATCHES
    }
    assert set(printed) == set(BATCHES)
    for name, numbers in printed.items():
        measured = [
            MODELOPT[name]["max"],
            ours("entropy", name),
            MODELOPT[name]["entropy"],
            onnxruntime_range("entropy", name, 99.99, bins=128),
            ours("percentile", name),
            MODELOPT[name]["percentile"],
            onnxruntime_range("percentile", name, 99.99, bins=2048),
            exact_percentile(name, 99.99),
            ours("mse", name),
        ]
        assert numbers == pytest.approx(measured, abs=6e-4)
