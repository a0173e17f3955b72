"""Constant folding, stored transposes, unit axes, index casts."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.fuse.constant_folding import ConstantFolding
from pipeline.fuse.index_cast import IndexCast
from pipeline.fuse.linear import Linear
from pipeline.fuse.rule import Rule
from pipeline.fuse.shared_subgraphs import SharedSubgraphs
from pipeline.fuse.unit_axis import UnitAxis
from pipeline.fuse.weights import Origin, read_origin, write_origin

from .graphs import assert_same, graph, operators, random, run


def test_small_constants_are_computed_once_and_kept_once() -> None:
    model = graph(
        "g (float[n, 12] x, int64[1] a, int64[1] b, int64[1] same) => (float[n, 3, 4] y, float[n, 12] z) {"
        " c = Concat<axis=0>(a, b) d = Concat<axis=0>(c, same) e = Identity(x) y = Reshape(e, d)"
        " f = Concat<axis=0>(a, same) h = Add(f, f) i = Constant<value_ints=[0, -1]>() z = Reshape(y, i) }",
        a=np.array([0]),
        b=np.array([3]),
        same=np.array([4]),
    )
    x = random(5, 12)
    before = run(model, x=x)
    report = ConstantFolding().apply(model)
    assert report.matched == 4
    assert operators(model) == {"Reshape": 2}
    assert_same(before, run(model, x=x), tolerance=0)


def test_parameters_are_not_folded_or_merged() -> None:
    model = graph(
        "g (float[n, 12] x, float[12] w, float[12] v, float[1] one) => (float[n, 12] y, float[n, 12] z) {"
        " a = Add(w, one) y = Mul(x, a) z = Mul(x, v) }",
        w=random(12),
        v=random(12),
        one=np.ones(1, np.float32),
    )
    assert ConstantFolding().apply(model).matched == 0
    assert operators(model) == {"Add": 1, "Mul": 2}
    assert set(model.graph.initializers) == {"w", "v", "one"}


def test_equal_nodes_become_one() -> None:
    model = graph("g (float[n] x) => (float[n] y) { a = Neg(x) b = Neg(x) y = Add(a, b) }")
    assert SharedSubgraphs().apply(model).matched == 1
    assert operators(model) == {"Neg": 1, "Add": 1}
    np.testing.assert_array_equal(run(model, x=np.ones(2, np.float32))["y"], [-2, -2])


def test_a_weight_is_stored_as_its_products_read_it() -> None:
    weight = random(20, 12, seed=1)
    model = graph(
        "g (float[n, 12] x, float[20, 12] w) => (float[n, 20] y, float[n, 20] z) {"
        " t = Transpose<perm=[1, 0]>(w) y = MatMul(x, t) u = Transpose(w) v = Neg(x) z = MatMul(v, u) }",
        w=weight,
    )
    write_origin(model.graph.initializers["w"], [Origin("layer.weight", (5, 25), transposed=False)])
    x = random(5, 12)
    before = run(model, x=x)
    report = Linear().apply(model)
    assert (report.matched, report.nodes_after, report.near_misses) == (1, 3, ())
    assert_same(before, run(model, x=x))
    stored = model.graph.initializers["w"]
    assert read_origin(stored) == (Origin("layer.weight", (5, 25), transposed=True),)
    assert stored.const_value is not None
    np.testing.assert_array_equal(stored.const_value.numpy(), weight.T)


def test_a_table_that_is_also_the_head_exists_once() -> None:
    table = random(20, 12, seed=1)
    model = graph(
        "g (int32[n] ids, float[20, 12] table) => (float[n, 20] y) {"
        " x = Gather(table, ids) t = Transpose<perm=[1, 0]>(table) y = MatMul(x, t) }",
        table=table,
    )
    ids = np.array([3, 19, 0], np.int32)
    before = run(model, ids=ids)
    assert Linear().apply(model).matched == 1
    assert operators(model) == {"Gather": 1, "Gemm": 1}
    assert list(model.graph.initializers) == ["table"]
    assert_same(before, run(model, ids=ids))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("y = Add(x, t)", "transpose by a Add"),
        ("c = Unsqueeze(x, axes) d = MatMul(c, t) y = Squeeze(d, axes)", "not of a matrix"),
    ],
)
def test_other_readers_of_a_shared_table_are_left_alone(body: str, reason: str) -> None:
    model = graph(
        "g (float[12, 12] x, float[12, 12] table, int64[1] axes) => (float[12, 12] y, float[12, 12] z) {"
        f" z = Mul(x, table) t = Transpose<perm=[1, 0]>(table) {body} }}",
        table=random(12, 12),
        axes=np.array([0]),
    )
    report = Linear().apply(model)
    assert report.matched == 0
    assert reason in report.near_misses[0].reason


def test_an_axis_of_one_sinks_through_a_layer_and_disappears() -> None:
    model = graph(
        "g (float[n, 12] x, int32[s] rows, float[12, 12] w, float[12] scale, float[1, 1, 1] half,"
        " int64[1] first, int64 zero) => (float[s, 12] y) {"
        " a = Unsqueeze(x, first) b = RMSNormalization<axis=-1>(a, scale) c = MatMul(b, w)"
        " d = Sigmoid(c) e = Mul(d, c) f = Add(a, e)"
        " k = Transpose<perm=[0, 2, 1]>(f) l = Transpose<perm=[0, 2, 1]>(k)"
        " o = Add(l, f) p = Gather<axis=-2>(o, rows) y = Gather<axis=0>(p, zero) }",
        w=random(12, 12, seed=1),
        scale=random(12, seed=2),
        half=np.full((1, 1, 1), 0.5, np.float32),
        first=np.array([0]),
        zero=np.array(0),
    )
    inputs = {"x": random(5, 12), "rows": np.array([4, 0], np.int32)}
    before = run(model, **inputs)
    report = UnitAxis().apply(model)
    assert report.matched > 0
    assert operators(model) == {
        "RMSNormalization": 1,
        "MatMul": 1,
        "Sigmoid": 1,
        "Mul": 1,
        "Add": 2,
        "Gather": 1,
    }
    assert_same(before, run(model, **inputs))


@pytest.mark.parametrize(
    "body",
    [
        # an arrangement that does move elements
        "a = Transpose<perm=[1, 0]>(x) y = Reshape(a, shape)",
        # the other operand has as many axes, and they are not all 1
        "a = Unsqueeze(x, first) b = Add(a, wide) y = ReduceSum<keepdims=0>(b, first)",
        # the axis itself is reduced
        "a = Unsqueeze(x, first) y = ReduceSum<keepdims=0>(a, first)",
    ],
)
def test_what_matters_to_the_numbers_stays(body: str) -> None:
    model = graph(
        f"g (float[n, 4] x, float[3, 1, 4] wide, int64[2] shape, int64[1] first) => (float[n, 4] y) {{ {body} }}",
        wide=random(3, 1, 4),
        shape=np.array([-1, 4]),
        first=np.array([0]),
    )
    x = random(6, 4)
    before = run(model, x=x)
    UnitAxis().apply(model)
    assert_same(before, run(model, x=x), tolerance=0)


def test_reshapes_and_transposes_that_cancel_go_away() -> None:
    model = graph(
        "g (float[n, 12] x, int64[3] apart, int64[2] together) => (float[n, 12] y) {"
        " a = Reshape(x, apart) b = Transpose<perm=[1, 0, 2]>(a) c = Transpose<perm=[1, 0, 2]>(b)"
        " d = Reshape(c, together) y = Neg(d) }",
        apart=np.array([-1, 3, 4]),
        together=np.array([-1, 12]),
    )
    UnitAxis().apply(model)
    assert operators(model) == {"Neg": 1}


@pytest.mark.parametrize(
    ("body", "matched"),
    [
        ("wide = Cast<to=7>(rows) y = Gather(x, wide)", 1),
        ("wide = Cast<to=7>(rows) z = Gather(x, wide) s = Shape(wide) y = Expand(z, s)", 0),
        ("wide = Cast<to=1>(rows) y = Add(x, wide)", 0),
    ],
)
def test_only_casts_of_indices_go(body: str, matched: int) -> None:
    model = graph(f"g (float[n] x, int32[m] rows) => (float[k] y) {{ {body} }}")
    assert IndexCast().apply(model).matched == matched
    inputs = {"x": random(4), "rows": np.array([2, 0, 3, 1], np.int32)}
    assert run(model, **inputs)["y"].shape == (4,)


@pytest.mark.parametrize("rule", [ConstantFolding(), UnitAxis(), Linear(), IndexCast()])
def test_a_rule_does_nothing_the_second_time(rule: Rule) -> None:
    model = graph(
        "g (float[n, 12] x, float[20, 12] w, int64[1] first) => (float[1, n, 20] y) {"
        " a = Unsqueeze(x, first) t = Transpose<perm=[1, 0]>(w) y = MatMul(a, t) }",
        w=random(20, 12),
        first=np.array([0]),
    )
    rule.apply(model)
    assert not rule.apply(model)
