"""What encoders give, laid out as rows for a comparison: nothing of a head's logits escapes the gate."""

from __future__ import annotations

import numpy as np
import pytest

from model_repo.runtime.errors import GateFailed
from pipeline.parity.compare import compare, gate
from pipeline.parity.encoder import padded, rows_of, token_types
from pipeline.recipe import Tolerance


def test_rows_of_an_embedding_are_itself_twice() -> None:
    embedding = np.arange(4, dtype=np.float32)
    assert rows_of([embedding, embedding + 1], 7, logits=False).tolist() == [[0, 1, 2, 3], [1, 2, 3, 4]]


def test_rows_of_tokens_end_with_the_text() -> None:
    batched = np.arange(10, dtype=np.float32).reshape(5, 2)
    rows = rows_of([batched, batched[:3]], 3, logits=True)
    assert rows[:, :2].tolist() == [[0, 1], [2, 3], [4, 5]] * 2


@pytest.mark.parametrize("factor", [1.05, 0.9, -1.0])
def test_a_single_label_that_is_scaled_fails_the_gate(factor: float) -> None:
    """The cosine of one number with another knows their signs only."""
    scores = [np.array([value], np.float32) for value in (3.0, -7.5, 0.8)]
    wanted = [rows_of([score] * 2, 5, logits=True) for score in scores]
    found = [rows_of([score * np.float32(factor)] * 2, 5, logits=True) for score in scores]
    gate("fuse", compare(wanted, wanted, "export", top1=False), Tolerance())
    with pytest.raises(GateFailed):
        gate("fuse", compare(wanted, found, "export", top1=False), Tolerance())


@pytest.mark.parametrize(("tokens", "types"), [(1, [0]), (2, [0, 1]), (5, [0, 0, 0, 1, 1])])
def test_the_second_half_of_a_text_is_of_the_other_type(tokens: int, types: list[int]) -> None:
    assert token_types(tokens).tolist() == types


def test_padding_has_the_first_type() -> None:
    batch = padded([[5, 6, 7, 8], [9, 10]])
    assert batch["token_type_ids"].tolist() == [[0, 0, 1, 1], [0, 1, 0, 0]]
