"""Parity: figures against numpy's own, verdicts, and the schedule that decoders are driven by."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_repo.runtime.errors import GateFailed
from pipeline.parity.compare import TIE, compare, cosine_by_row, gate, in_words
from pipeline.parity.decoder import (
    BLOCK_SIZE,
    CHUNK,
    DECODED,
    Part,
    block_tables,
    schedule,
    step_tensors,
)
from pipeline.parity.encoder import padded
from pipeline.recipe import Tolerance


def rows(seed: int, count: int = 6, width: int = 50) -> np.ndarray:
    """Random logits."""
    return np.random.default_rng(seed).standard_normal((count, width), dtype=np.float32)


def test_figures_are_what_numpy_gives_row_by_row() -> None:
    wanted, found = [rows(1), rows(2, 3)], [rows(3), rows(4, 3)]
    figures = compare(wanted, found, "before", top1=True)
    every = [
        (a, b) for left, right in zip(wanted, found, strict=True) for a, b in zip(left, right, strict=True)
    ]
    cosines = [np.dot(a, b) / np.sqrt(np.dot(a, a) * np.dot(b, b)) for a, b in every]
    assert figures["rows"] == 9
    assert figures["min_cosine"] == pytest.approx(min(cosines), abs=1e-6)
    assert figures["mean_cosine"] == pytest.approx(np.mean(cosines), abs=1e-6)
    assert figures["max_abs_difference"] == pytest.approx(max(np.abs(a - b).max() for a, b in every))
    assert figures["top1"] == sum(a.argmax() == b.argmax() for a, b in every) / 9


def test_the_same_numbers_pass_every_tolerance() -> None:
    figures = compare([rows(1)], [rows(1)], "before", top1=True)
    assert figures["min_cosine"] == pytest.approx(1.0, abs=1e-12)
    gate("fuse", figures, Tolerance(min_cosine=1 - 1e-12))
    assert in_words(figures) == "cosine 1.0000000, top-1 100.0%"
    assert in_words("not run: why") == "not run: why"


@pytest.mark.parametrize("fault", ["one row turned", "nan", "infinity", "another first place"])
def test_one_bad_row_among_many_is_enough(fault: str) -> None:
    wanted = rows(1, 100)
    found = wanted.copy()
    if fault == "one row turned":
        found[7] = rows(8, 1)[0]
    elif fault == "nan":
        found[7, 3] = np.nan
    elif fault == "infinity":
        found[7, 3] = np.inf
    else:
        first, second = np.argsort(wanted[7])[::-1][:2]
        wanted[7, first] = wanted[7, second] + 2 * TIE
        found[7] = wanted[7]
        found[7, second] = wanted[7, first] + 2 * TIE
    figures = compare([wanted], [found], "before", top1=True)
    with pytest.raises(GateFailed, match="fuse differs from before"):
        gate("fuse", figures, Tolerance())


def test_a_tie_may_fall_either_way_and_is_counted() -> None:
    wanted = rows(1, 100)
    first, second = np.argsort(wanted[7])[::-1][:2]
    wanted[7, first] = wanted[7, second] + 1e-6
    found = wanted.copy()
    found[7, second] = wanted[7, first] + 1e-6
    figures = compare([wanted], [found], "before", top1=True)
    assert (figures["top1"], figures["ties"]) == (1.0, 1)
    gate("fuse", figures, Tolerance())


def test_scale_is_judged_by_the_difference_and_zeros_by_themselves() -> None:
    zero, some = np.zeros((1, 4), np.float32), np.ones((1, 4), np.float32)
    assert cosine_by_row(zero, zero)[0] == 1.0
    assert cosine_by_row(zero, some)[0] == 0.0
    assert compare([some], [2 * some], "before", top1=False)["max_abs_difference"] == 1.0


def test_what_was_not_run_is_not_judged() -> None:
    gate("emit", "not run: copies", Tolerance())


def test_outputs_of_another_shape_are_an_error() -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        compare([rows(1)], [rows(1, 7)], "before", top1=True)


@given(lengths=st.lists(st.integers(1, 90), min_size=1, max_size=6))
def test_every_token_is_computed_once_in_order_and_the_last_one_by_one(lengths: list[int]) -> None:
    done = [0] * len(lengths)
    kinds = set()
    for step in schedule(lengths):
        assert len({part.sequence for part in step}) == len(step) > 0
        for sequence, start, stop in step:
            assert start == done[sequence]
            assert start < stop <= min(lengths[sequence], start + CHUNK)
            if start >= max(1, lengths[sequence] - DECODED):
                assert stop == start + 1
            done[sequence] = stop
        kinds.add(len({part.stop - part.start == 1 for part in step}))
    assert done == lengths
    if max(lengths) > 2 * CHUNK + DECODED and min(lengths) < CHUNK:
        assert 2 in kinds  # some step mixes chunks with single tokens


@given(lengths=st.lists(st.integers(1, 90), min_size=1, max_size=6))
def test_no_two_tokens_share_a_slot(lengths: list[int]) -> None:
    tables = block_tables(lengths)
    used = tables[tables >= 0]
    assert len(set(used.tolist())) == len(used) == sum(-(-length // BLOCK_SIZE) for length in lengths)
    prompts = [list(range(length)) for length in lengths]
    step = step_tensors([Part(row, 0, length) for row, length in enumerate(lengths)], prompts, tables)
    assert len(set(step.slot_mapping.tolist())) == sum(lengths)
    for row, length in enumerate(lengths):
        start = int(step.cu_seqlens[row])
        for position in range(length):
            slot = int(step.slot_mapping[start + position])
            assert slot == tables[row, position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE
            assert step.position_ids[start + position] == position


def test_texts_are_padded_with_a_mask() -> None:
    batch = padded([[5, 6, 7], [8]])
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
