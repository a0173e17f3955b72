"""A residual sum and its normalization become one node, whose sum the next residual reads."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.fuse.skip_rms_norm import SkipRmsNorm

from .graphs import assert_same, graph, operators, random, run

INPUTS = "g (float[n, 12] x, float[n, 12] r, float[12] b, float[12] w) => "


def test_sum_and_norm_become_one_node_and_the_sum_stays() -> None:
    model = graph(
        INPUTS + "(float[n, 12] y, float[n, 12] again) { s = Add(x, r) y = RMSNormalization"
        "<axis=-1, epsilon=0.01>(s, w) again = Mul(s, b) }",
        w=random(12, seed=1),
        b=random(12, seed=2),
    )
    inputs = {"x": random(4, 12, seed=3), "r": random(4, 12, seed=4)}
    before = run(model, **inputs)
    report = SkipRmsNorm().apply(model)
    assert (report.matched, report.near_misses) == (1, ())
    assert operators(model) == {"SkipRMSNormalization": 1, "Mul": 1}
    assert model.opset_imports["slipway"] == 1
    assert_same(before, run(model, **inputs))


def test_a_sum_that_is_an_output_keeps_its_name() -> None:
    model = graph(
        INPUTS + "(float[n, 12] y, float[n, 12] s) { s = Add(x, r) y = RMSNormalization<axis=-1>(s, w) }",
        w=random(12, seed=1),
        b=random(12),
    )
    inputs = {"x": random(4, 12, seed=3), "r": random(4, 12, seed=4)}
    before = run(model, **inputs)
    assert SkipRmsNorm().apply(model).nodes_after == 1
    assert_same(before, run(model, **inputs))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("s = Add(x, b) y = RMSNormalization<axis=-1>(s, w)", "not one and the same"),
        ("s = Add(x, r) y = RMSNormalization<axis=0>(s, w)", "not over the last axis"),
        ("v = Neg(w) s = Add(x, r) y = RMSNormalization<axis=-1>(s, v)", "computed in the graph"),
    ],
)
def test_what_only_looks_alike_is_left_alone(body: str, reason: str) -> None:
    model = graph(INPUTS + f"(float[n, 12] y) {{ {body} }}", w=random(12, seed=1), b=random(12))
    report = SkipRmsNorm().apply(model)
    assert report.matched == 0
    assert reason in report.near_misses[0].reason
    assert "SkipRMSNormalization" not in operators(model)


def test_a_norm_of_something_else_is_no_near_miss() -> None:
    model = graph(
        INPUTS + "(float[n, 12] y) { y = RMSNormalization<axis=-1>(x, w) }", w=random(12), b=random(12)
    )
    assert SkipRmsNorm().apply(model).near_misses == ()
    assert np.array_equal(list(operators(model)), ["RMSNormalization"])
