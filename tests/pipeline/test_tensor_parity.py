"""Figures of named tensors: what a cosine does not see, integers, values that are not finite."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from model_repo.runtime.contract import TensorSpec
from model_repo.runtime.errors import GateFailed
from pipeline.parity.compare import gate
from pipeline.parity.tensors import compare_tensors, load_runs, save_runs
from pipeline.recipe import Tolerance

ROWS = np.random.default_rng(0).standard_normal((6, 5), dtype=np.float32)
LABELS = np.arange(6)


def passes(wanted: np.ndarray, found: np.ndarray) -> bool:
    """Whether the default tolerance lets the pair through, beside outputs that are equal."""
    figures = compare_tensors([ROWS, LABELS, wanted], [ROWS, LABELS, found], "before")
    try:
        gate("fuse", figures, Tolerance())
    except GateFailed:
        return False
    return True


def test_equal_outputs_of_all_types_pass() -> None:
    for dtype in ("float16", "float32", "float64", "int8", "uint64", "bool"):
        array = np.arange(12).reshape(3, 4).astype(dtype)
        assert passes(array, array.copy()), dtype
    assert passes(np.float32(3.0).reshape(()), np.float32(3.0).reshape(()))
    assert passes(np.zeros((0, 4), np.float32), np.zeros((0, 4), np.float32))


@pytest.mark.parametrize("scale", [2.0, 0.99, -1.0])
def test_a_wrong_scale_fails_though_the_cosine_of_one_number_is_1(scale: float) -> None:
    column = np.abs(ROWS[:, :1]) + 1
    assert not passes(column, column * np.float32(scale))


def test_rounding_passes() -> None:
    assert passes(ROWS, ROWS * np.float32(1 + 1e-6))
    zeros = np.zeros((3, 4), np.float32)
    assert passes(zeros, zeros + np.float32(1e-8))


def test_a_row_that_nearly_cancels_out_is_rounded_at_the_size_of_the_others() -> None:
    column = np.array([[3.0], [-2.0], [1e-5]], np.float32)
    rounded = column + np.float32(2e-6)
    assert passes(column, rounded)
    assert not passes(column, column + np.float32(0.02))


def test_one_wrong_integer_fails() -> None:
    other = LABELS.copy()
    other[3] += 1
    assert not passes(LABELS, other)
    assert not passes(np.array([[2]]), np.array([[4]]))
    assert not passes(np.array([True, False]), np.array([True, True]))


def test_infinities_must_be_the_same_ones() -> None:
    masked = ROWS.copy()
    masked[2, 1] = -np.inf
    masked[4, 0] = np.nan
    assert passes(masked, masked.copy())
    assert not passes(ROWS, masked)
    assert not passes(masked, ROWS)
    assert compare_tensors([ROWS], [masked], "before")["max_relative_difference"] == "not finite"


@pytest.mark.parametrize("found", [ROWS[:5], ROWS.astype(np.float64), ROWS[None]])
def test_other_shapes_and_types_are_an_error(found: np.ndarray) -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        compare_tensors([ROWS], [found], "before")


def test_runs_are_read_back_by_name(tmp_path: Path) -> None:
    specs = (TensorSpec("a/b", "float32", ("n", 5)), TensorSpec("file", "bool", ()))
    runs = [{"a/b": ROWS[:n], "file": np.array(n > 2)} for n in (2, 3)]
    save_runs(tmp_path / "runs.npz", runs)
    for wanted, found in zip(runs, load_runs(tmp_path / "runs.npz", specs), strict=True):
        assert list(found) == ["a/b", "file"]
        for name, array in wanted.items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == array.dtype
