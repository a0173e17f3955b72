"""Rotary embedding and the packed product move into the attention operator."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest

from pipeline.fuse.qkv import Qkv
from pipeline.fuse.rotary import Rotary
from pipeline.fuse.unit_axis import UnitAxis
from pipeline.fuse.weights import Origin, read_origin

from .graphs import assert_same, graph, operators, random, run

HEADS, KV_HEADS, SIZE, HIDDEN, MAX_LENGTH = 4, 2, 8, 12, 40
STEP = {
    # two sequences of 3 and 2 new tokens, 0 and 5 in the cache, and one row of padding
    "position_ids": np.array([0, 1, 2, 5, 6, 0], np.int32),
    "cu": np.array([0, 3, 5], np.int32),
    "past": np.array([0, 5], np.int32),
    "table": np.array([[2, -1], [0, 3]], np.int32),
    "slots": np.array([8, 9, 10, 13, 14, -1], np.int32),
    "x": random(6, HIDDEN),
    "keys": random(4, 4, KV_HEADS, SIZE, seed=8),
    "values": random(4, 4, KV_HEADS, SIZE, seed=9),
}
INPUTS = (
    f"g (float[tokens, {HIDDEN}] x, int32[tokens] position_ids, int32[b1] cu, int32[batch] past,"
    f" int32[batch, m] table, int32[tokens] slots, float[blocks, size, {KV_HEADS}, {SIZE}] keys,"
    f" float[blocks, size, {KV_HEADS}, {SIZE}] values, float[{HIDDEN}, {HEADS * SIZE}] wq,"
    f" float[{HIDDEN}, {KV_HEADS * SIZE}] wk, float[{HIDDEN}, {KV_HEADS * SIZE}] wv,"
    f" float[{HEADS * SIZE}] bq, float[{KV_HEADS * SIZE}] bk, float[{KV_HEADS * SIZE}] bv,"
    " float[4] frequencies, float amplitude, int64[1] column, int64[1] head_axis,"
    " int64[3] q_heads, int64[3] k_heads, int64[2] rows, int64[1] zero, int64[1] half, int64[1] end,"
    " int64[1] last, int64[1] step) => (float[tokens, 32] y)"
)
ATTENTION = (
    "y, keys_out, values_out = slipway.PagedAttention<num_heads=4, kv_num_heads=2>"
    "(q, k, v, keys, values, cu, past, table, , , slots)"
)
PRODUCTS = "q0 = MatMul(x, wq) k0 = MatMul(x, wk) v = MatMul(x, wv) "
ANGLES = (
    "p = Unsqueeze(position_ids, column) f = Cast<to=1>(p) angle = Mul(f, frequencies)"
    " both = Concat<axis=-1>(angle, angle) c = Cos(both) cos0 = Mul(c, amplitude) s = Sin(both)"
    " sin0 = Mul(s, amplitude) cos = Unsqueeze(cos0, head_axis) sin = Unsqueeze(sin0, head_axis) "
)


def turn(name: str, half: str = "half", cos: str = "cos", sin: str = "sin") -> str:
    """The nodes that turn <name>0 into <name>, as transformers writes it."""
    n = name
    return (
        f"{n}1 = Reshape({n}0, {n}_heads) {n}2 = Mul({n}1, {cos}) {n}3 = Slice({n}1, zero, {half}, last, step)"
        f" {n}4 = Slice({n}1, {half}, end, last, step) {n}5 = Neg({n}4) {n}6 = Concat<axis=-1>({n}5, {n}3)"
        f" {n}7 = Mul({n}6, {sin}) {n}8 = Add({n}2, {n}7) {n} = Reshape({n}8, rows) "
    )


def constants(amplitude: float = 1.0) -> dict[str, np.ndarray]:
    return {
        "wq": random(HIDDEN, HEADS * SIZE, seed=1),
        "wk": random(HIDDEN, KV_HEADS * SIZE, seed=2),
        "wv": random(HIDDEN, KV_HEADS * SIZE, seed=3),
        "bq": random(HEADS * SIZE, seed=4),
        "bk": random(KV_HEADS * SIZE, seed=5),
        "bv": random(KV_HEADS * SIZE, seed=6),
        "frequencies": np.array([1.0, 0.3, 0.07, 0.011], np.float32),
        "amplitude": np.float32(amplitude).reshape(()),
        "column": np.array([1]),
        "head_axis": np.array([1]),
        "q_heads": np.array([-1, HEADS, SIZE]),
        "k_heads": np.array([-1, KV_HEADS, SIZE]),
        "rows": np.array([0, -1]),
        "zero": np.array([0]),
        "half": np.array([SIZE // 2]),
        "end": np.array([2**62]),
        "last": np.array([-1]),
        "step": np.array([1]),
    }


def model_of(body: str, changed: dict[str, np.ndarray] | None = None) -> ir.Model:
    return graph(f"{INPUTS} {{ {body} }}", **{**constants(), **(changed or {})})


def attention(model: ir.Model) -> ir.Node:
    (node,) = (node for node in model.graph if node.op_type == "PagedAttention")
    return node


@pytest.mark.parametrize("amplitude", [1.0, 1.2079])
def test_rotary_moves_into_the_operator(amplitude: float) -> None:
    model = model_of(
        PRODUCTS + ANGLES + turn("q") + turn("k") + ATTENTION,
        {"amplitude": np.float32(amplitude).reshape(())},
    )
    before = run(model, **STEP)
    report = Rotary(MAX_LENGTH).apply(model)
    assert (report.matched, report.near_misses) == (1, ())
    assert operators(model) == {"MatMul": 3, "Reshape": 2, "PagedAttention": 1}
    assert_same(before, run(model, **STEP))
    UnitAxis().apply(model)
    assert operators(model) == {"MatMul": 3, "PagedAttention": 1}
    assert_same(before, run(model, **STEP))


def test_tables_hold_every_position_at_the_models_own_frequencies() -> None:
    model = model_of(
        PRODUCTS + ANGLES + turn("q") + turn("k") + ATTENTION, {"amplitude": np.float32(1.5).reshape(())}
    )
    Rotary(MAX_LENGTH).apply(model)
    node = attention(model)
    for index, function in ((8, math.cos), (9, math.sin)):
        table = node.inputs[index]
        assert table is not None
        assert table.const_value is not None
        expected = [
            [1.5 * function(position * float(f)) for f in constants()["frequencies"]]
            for position in range(MAX_LENGTH)
        ]
        np.testing.assert_allclose(table.const_value.numpy(), expected, atol=1e-5)
    assert node.inputs[17] is not None
    assert node.inputs[17].name == "position_ids"


def test_layers_share_their_tables() -> None:
    again = turn("r").replace("r0", "q0").replace("r_heads", "q_heads")
    first = ATTENTION.replace("y, keys_out, values_out", "y1, k1_out, v1_out")
    second = ATTENTION.replace("y, keys_out, values_out", "y2, k2_out, v2_out").replace("(q,", "(r,")
    model = model_of(PRODUCTS + ANGLES + turn("q") + turn("k") + again + first + second + " y = Add(y1, y2)")
    before = run(model, **STEP)
    assert Rotary(MAX_LENGTH).apply(model).matched == 2
    assert [name for name in model.graph.initializers if name.startswith("rotary")] == [
        "rotary_cos_0",
        "rotary_sin_0",
    ]
    assert_same(before, run(model, **STEP))


OTHER_ANGLES = (
    " angle2 = Mul(angle, amplitude) b2 = Concat<axis=-1>(angle2, angle2) c2 = Cos(b2)"
    " cos2 = Unsqueeze(c2, head_axis) "
)
LONGEST = ANGLES.replace("angle = Mul(f,", "top = ReduceMax(f) g = Div(f, top) angle = Mul(g,")
UNEQUAL = ANGLES.replace(
    "both = Concat<axis=-1>(angle, angle)", "o = Mul(angle, angle) both = Concat<axis=-1>(angle, o)"
)
BY_TABLE = ANGLES.replace(
    "angle = Mul(f,", "z = Cast<to=1>(slots) u = Unsqueeze(z, column) v2 = Add(f, u) angle = Mul(v2,"
)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (PRODUCTS + "k = Identity(k0) " + ANGLES + turn("q") + ATTENTION, "only the query"),
        (
            PRODUCTS + ANGLES + OTHER_ANGLES + turn("q") + turn("k", cos="cos2") + ATTENTION,
            "different tables",
        ),
        (PRODUCTS + LONGEST + turn("q") + turn("k") + ATTENTION, "other tokens' positions"),
        (PRODUCTS + UNEQUAL + turn("q") + turn("k") + ATTENTION, "two halves"),
        (PRODUCTS + BY_TABLE + turn("q") + turn("k") + ATTENTION, "depend on"),
    ],
)
def test_other_rotations_are_left_alone(body: str, reason: str) -> None:
    model = model_of(body, {"amplitude": np.float32(1.1).reshape(())})
    before = run(model, **STEP)
    report = Rotary(MAX_LENGTH).apply(model)
    assert report.matched == 0
    assert reason in report.near_misses[0].reason
    assert_same(before, run(model, **STEP))


def test_a_rotation_that_is_not_by_halves_is_not_seen() -> None:
    body = PRODUCTS + ANGLES + turn("q", half="step") + turn("k", half="step") + ATTENTION
    model = model_of(body)
    assert Rotary(MAX_LENGTH).apply(model).matched == 0
    assert attention(model).inputs[17:] == ()


def test_without_a_longest_sequence_there_are_no_tables() -> None:
    model = model_of(PRODUCTS + ANGLES + turn("q") + turn("k") + ATTENTION)
    report = Rotary(None).apply(model)
    assert report.matched == 0
    assert "longest sequence" in report.near_misses[0].reason


BIASED = "q0 = MatMul(x, wq) q = Add(q0, bq) k0 = MatMul(x, wk) k = Add(bk, k0) v0 = MatMul(x, wv) v = Add(v0, bv) "
PLAIN = "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) "


@pytest.mark.parametrize("products", [PLAIN, BIASED])
def test_three_products_become_one(products: str) -> None:
    model = model_of(products + ATTENTION)
    before = run(model, **STEP)
    report = Qkv().apply(model)
    assert (report.matched, report.near_misses) == (1, ())
    assert operators(model)["MatMul"] == 1
    assert attention(model).inputs[1:3] == (None, None)
    assert_same(before, run(model, **STEP))
    for node in model.graph:
        if node.op_type in ("MatMul", "Add"):
            weight, kind = node.inputs[1], "w" if node.op_type == "MatMul" else "b"
            assert weight is not None
            assert weight.const_value is not None
            rows = [HEADS * SIZE, KV_HEADS * SIZE, KV_HEADS * SIZE]
            origins = read_origin(weight)
            assert origins == tuple(
                Origin(f"model.{kind}{part}", (0, size), transposed=False)
                for part, size in zip("qkv", rows, strict=True)
            )
            slices = np.split(weight.const_value.numpy(), np.cumsum(rows)[:-1], axis=-1)
            for origin, values in zip(origins, slices, strict=True):
                np.testing.assert_array_equal(values, constants()[origin.parameter.removeprefix("model.")])


@pytest.mark.parametrize(
    ("products", "reason"),
    [
        (PLAIN.replace("q = MatMul(x, wq)", "q0 = MatMul(x, wq) q = Add(q0, bq)"), "some have none"),
        (PLAIN.replace("k = MatMul(x, wk)", "x2 = Neg(x) k = MatMul(x2, wk)"), "different inputs"),
        (PLAIN.replace("v = MatMul(x, wv)", "v = MatMul(x, wk)"), "share their weight"),
        (PLAIN.replace("v = MatMul(x, wv)", "v0 = MatMul(x, wv) v = Neg(v0)"), "not all plain products"),
    ],
)
def test_products_that_cannot_be_packed_are_left_alone(products: str, reason: str) -> None:
    model = model_of(products + ATTENTION)
    report = Qkv().apply(model)
    assert report.matched == 0
    assert reason in report.near_misses[0].reason


def test_keys_and_values_of_different_size_stay_apart() -> None:
    text = INPUTS.replace(f"{KV_HEADS}, {SIZE}] values", f"{KV_HEADS}, 4] values").replace(
        "float[12, 16] wv", "float[12, 8] wv"
    )
    text = text.replace("float[tokens, 32] y", "float[tokens, 16] y")
    model = graph(f"{text} {{ {PLAIN} {ATTENTION} }}", **{**constants(), "wv": random(HIDDEN, 8, seed=3)})
    report = Qkv().apply(model)
    assert report.matched == 0
    assert "different head sizes" in report.near_misses[0].reason


SPLIT = "whole = Concat<axis=-1>(q0, k0, v0) q, k, v = Split<axis=1>(whole, sizes) "


def split_model(body: str, outputs: str = "") -> ir.Model:
    text = INPUTS.replace("int64[1] zero,", "int64[1] zero, int64[3] sizes,").replace(
        "] y)", f"] y{outputs})"
    )
    sizes = np.array([HEADS * SIZE, KV_HEADS * SIZE, KV_HEADS * SIZE])
    return graph(f"{text} {{ {PRODUCTS.replace('v =', 'v0 =')} {body} }}", **constants(), sizes=sizes)


def test_a_split_that_only_attention_reads_goes() -> None:
    model = split_model(SPLIT + ATTENTION)
    before = run(model, **STEP)
    report = Qkv().apply(model)
    assert (report.matched, report.near_misses) == (1, ())
    assert operators(model) == {"MatMul": 3, "Concat": 1, "PagedAttention": 1}
    assert_same(before, run(model, **STEP))


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        (SPLIT.replace("q, k, v =", "q, v, k =") + ATTENTION, ""),
        (SPLIT + "z = Neg(k) " + ATTENTION, ", float[tokens, 16] z"),
    ],
)
def test_other_splits_stay(body: str, outputs: str) -> None:
    model = split_model(body, outputs)
    assert Qkv().apply(model).matched == 0
    assert operators(model)["Split"] == 1
