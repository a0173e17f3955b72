"""ONNX Runtime gets the rows of a mask spelled out, once for all layers that share it."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.fuse.attention_mask import spell_out_masks

from .graphs import assert_same, graph, operators, random, run, run_on_cpu

HEAD = (
    "g (float[b, n, 12] q, float[b, m, 12] k, float[b, 1, 1, m] mask, float[1, m] row, float[b, 1, n, m] full)"
    " => (float[b, n, 12] y"
)
ATTENTION = "Attention<q_num_heads=3, kv_num_heads=3>"
INPUTS = {
    "q": random(2, 5, 12, seed=1),
    "k": random(2, 7, 12, seed=2),
    "mask": random(2, 1, 1, 7, seed=3),
    "row": random(1, 7, seed=4),
    "full": random(2, 1, 5, 7, seed=5),
}


@pytest.mark.parametrize(("mask", "added"), [("mask", 3), ("row", 3), ("full", 0), ("", 0)])
def test_a_mask_of_one_row_is_repeated_for_each_query(mask: str, added: int) -> None:
    operands = "q, k, k" + (f", {mask}" if mask else "")
    model = graph(f"{HEAD}) {{ y = {ATTENTION}({operands}) }}")
    before = run(model, **INPUTS)
    spell_out_masks(model)
    assert len(model.graph) == 1 + added
    assert_same(before, run_on_cpu(model, **INPUTS), 1e-5)


def test_layers_share_the_rows() -> None:
    model = graph(f"{HEAD}) {{ a = {ATTENTION}(q, k, k, mask) y = {ATTENTION}(a, k, k, mask) }}")
    before = run(model, **INPUTS)
    spell_out_masks(model)
    assert operators(model) == {"Attention": 2, "Shape": 1, "Concat": 1, "Expand": 1}
    assert_same(before, run_on_cpu(model, **INPUTS), 1e-5)


def test_queries_of_another_length_get_rows_of_their_own() -> None:
    text = HEAD.replace(") =>", ", float[b, l, 12] p) =>")
    model = graph(
        f"{text}, float[b, l, 12] z) {{ y = {ATTENTION}(q, k, k, mask) z = {ATTENTION}(p, k, k, mask) }}"
    )
    inputs = {**INPUTS, "p": random(2, 3, 12, seed=6)}
    before = run(model, **inputs)
    spell_out_masks(model)
    assert operators(model)["Expand"] == 2
    assert_same(before, run_on_cpu(model, **inputs), 1e-5)
    assert np.isfinite(before["z"]).all()
