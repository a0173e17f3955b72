"""Encoders' rotary embedding becomes one node over rows; parts of packed rows one Split; neutral nodes go."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.fuse.dense_attention import DenseAttention
from pipeline.fuse.neutral_elements import NeutralElements
from pipeline.fuse.rotary_embedding import RotaryEmbedding
from pipeline.fuse.split_parts import SplitParts

from .graphs import assert_fuses, assert_left_alone, graph, operators, random

HEADS, SIZE, LENGTH = 3, 8, 5
HEAD = (
    f"g (float[b, n, {HEADS * SIZE}] x, float[1, n, 1] positions, float[b, n, 1] own, float[4] frequencies,"
    " float amplitude, int64[4] apart, int64[1] one, int64[1] zero, int64[1] half, int64[1] end, int64[1] last)"
    f" => (float[b, {HEADS}, n, {SIZE}] y"
)
ROWS = "x1 = Reshape(x, apart) q = Transpose<perm=[0, 2, 1, 3]>(x1) "
ANGLES = "f = Mul(positions, frequencies) both = Concat<axis=-1>(f, f) "
TABLES = (
    "c = Cos(both) c1 = Mul(c, amplitude) cos = Unsqueeze(c1, one) s = Sin(both) s1 = Mul(s, amplitude)"
    " sin = Unsqueeze(s1, one) "
)
TURN = (
    "low = Slice(q, zero, half, last, one) high = Slice(q, half, end, last, one) minus = Neg(high)"
    " crossed = Concat<axis=-1>(minus, low) left = Mul(q, cos) right = Mul(crossed, sin) y = Add(left, right)"
)


def constants(amplitude: float = 1.25) -> dict[str, np.ndarray]:
    return {
        "frequencies": np.array([1.0, 0.3, 0.07, 0.011], np.float32),
        "amplitude": np.float32(amplitude).reshape(()),
        "apart": np.array([0, 0, HEADS, SIZE]),
        "one": np.array([1]),
        "zero": np.array([0]),
        "half": np.array([SIZE // 2]),
        "end": np.array([2**62]),
        "last": np.array([-1]),
    }


def inputs() -> dict[str, np.ndarray]:
    return {
        "x": random(2, LENGTH, HEADS * SIZE, seed=1),
        "positions": np.arange(LENGTH, dtype=np.float32).reshape(1, LENGTH, 1),
        "own": random(2, LENGTH, 1, seed=2),
    }


def model_of(body: str, outputs: str = "", opset: int = 24):
    return graph(f"{HEAD}{outputs}) {{ {body} }}", opset=opset, **constants())


def test_rows_are_turned_before_their_heads_move_apart() -> None:
    model = model_of(ROWS + ANGLES + TABLES + TURN)
    wanted = {"Mul": 3, "Cos": 1, "Sin": 1, "Shape": 1, "Concat": 1, "Expand": 2}
    wanted |= {"RotaryEmbedding": 1, "Reshape": 1, "Transpose": 1}
    (report,) = assert_fuses([RotaryEmbedding()], model, wanted, 1e-5, **inputs())
    assert (report.matched, report.near_misses) == (1, ())
    order = [node.op_type for node in model.graph]
    assert order.index("RotaryEmbedding") < order.index("Reshape") < order.index("Transpose")


def test_heads_that_come_apart_from_elsewhere_are_turned_as_they_are() -> None:
    model = model_of(ROWS.replace("q = ", "q0 = ") + "q = Tanh(q0) " + ANGLES + TABLES + TURN)
    wanted = {"Mul": 3, "Cos": 1, "Sin": 1, "Shape": 1, "Concat": 1, "Expand": 2, "Tanh": 1}
    wanted |= {"RotaryEmbedding": 1, "Reshape": 1, "Transpose": 1}
    assert_fuses([RotaryEmbedding()], model, wanted, 1e-5, **inputs())
    assert [node.op_type for node in model.graph][-1] == "RotaryEmbedding"


def test_then_attention_reads_rows() -> None:
    turned = ROWS + ANGLES + TABLES + TURN.replace("y = ", "t = ")
    body = turned + (
        "k = Transpose<perm=[0, 1, 3, 2]>(t) w = MatMul(t, k) p = Softmax<axis=-1>(w) o = MatMul(p, q)"
        " o1 = Transpose<perm=[0, 2, 1, 3]>(o) y = Reshape(o1, rows)"
    )
    text = HEAD.replace("int64[4] apart,", "int64[4] apart, int64[3] rows,").replace(
        f"float[b, {HEADS}, n, {SIZE}] y", f"float[b, n, {HEADS * SIZE}] y"
    )
    model = graph(f"{text}) {{ {body} }}", **constants(), rows=np.array([0, 0, HEADS * SIZE]))
    wanted = {"Mul": 3, "Cos": 1, "Sin": 1, "Shape": 1, "Concat": 1, "Expand": 2}
    wanted |= {"RotaryEmbedding": 1, "Attention": 1}
    assert_fuses([RotaryEmbedding(), DenseAttention()], model, wanted, 2e-5, **inputs())


def test_layers_share_their_tables() -> None:
    again = TURN
    for name in ("low", "high", "minus", "crossed", "left", "right"):
        again = (
            again.replace(f"{name} =", f"{name}2 =")
            .replace(f"{name})", f"{name}2)")
            .replace(f"({name},", f"({name}2,")
        )
    again = (
        again.replace("minus2, low)", "minus2, low2)")
        .replace("left2, right)", "left2, right2)")
        .replace("y =", "z =")
    )
    model = model_of(ROWS + ANGLES + TABLES + TURN + " " + again, f", float[b, {HEADS}, n, {SIZE}] z")
    RotaryEmbedding().apply(model)
    found = operators(model)
    assert found["RotaryEmbedding"] == 2
    assert found["Expand"] == found["Cos"] + found["Sin"] == 2


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (ANGLES + TABLES.replace("Sin(both)", "Cos(both)") + TURN, "different angles"),
        (
            ANGLES.replace("(f, f)", "(f, g)").replace("both", "g = Mul(f, f) both") + TABLES + TURN,
            "two equal halves",
        ),
        (ANGLES.replace("positions", "own") + TABLES + TURN, "two equal halves"),
        (
            ANGLES
            + "f2 = Mul(f, f) both2 = Concat<axis=-1>(f2, f2) "
            + TABLES.replace("Sin(both)", "Sin(both2)")
            + TURN,
            "different angles",
        ),
        (ANGLES + TABLES + TURN.replace("minus = Neg(high)", "minus = Abs(high)"), None),
        (ANGLES + TABLES + TURN.replace("(minus, low)", "(low, minus)"), None),
    ],
)
def test_other_turns_stay(body: str, reason: str | None) -> None:
    assert_left_alone(RotaryEmbedding(), model_of(ROWS + body), reason)


def test_an_opset_without_the_operator_is_left_alone() -> None:
    model = model_of(ROWS + ANGLES + TABLES + TURN, opset=22)
    assert_left_alone(RotaryEmbedding(), model, "opset 22 has no RotaryEmbedding")


PACKED = (
    "g (float[b, n, 24] x, int64[5] apart, int64[1] zero, int64[1] one, int64[1] two, int64[1] three, int64[1] axis,"
    " int64 first, int64 second, int64 third) => (float[b, n, 2, 4] y"
)
SLICES = (
    "v = Reshape(x, apart) a1 = Slice(v, zero, one, axis, one) a = Squeeze(a1, axis) b1 = Slice(v, one, two, axis, one)"
    " b = Squeeze(b1, axis) c1 = Slice(v, two, three, axis, one) c = Squeeze(c1, axis) "
)
GATHERS = (
    "v = Reshape(x, apart) a = Gather<axis=2>(v, first) b = Gather<axis=2>(v, second)"
    " c = Gather<axis=2>(v, third) "
)
USE = "d = Mul(a, b) y = Sub(d, c)"


def indices() -> dict[str, np.ndarray]:
    return {
        "apart": np.array([0, 0, 3, 2, 4]),
        **{name: np.array([i]) for i, name in enumerate(("zero", "one", "two", "three"))},
        "axis": np.array([-3]),
        **{name: np.array(i) for i, name in enumerate(("first", "second", "third"))},
    }


@pytest.mark.parametrize("taken", [SLICES, GATHERS], ids=["slices", "gathers"])
def test_parts_of_a_row_come_of_one_split(taken: str) -> None:
    model = graph(f"{PACKED}) {{ {taken} {USE} }}", **indices())
    wanted = {"Split": 1, "Reshape": 3, "Mul": 1, "Sub": 1}
    (report,) = assert_fuses([SplitParts()], model, wanted, 0, x=random(2, 5, 24))
    assert (report.matched, report.near_misses) == (1, ())


@pytest.mark.parametrize(
    ("body", "outputs", "reason"),
    [
        (SLICES + USE + " z = Neg(v)", ", float[b, n, 3, 2, 4] z", "more than one part"),
        (
            SLICES.replace("(v, one, two,", "(v, one, three,").replace(
                "b = Squeeze(b1, axis)", "b = ReduceSum<keepdims=0>(b1, axis)"
            )
            + USE,
            "",
            "more than one part",
        ),
        ("v = Reshape(x, apart) y = ReduceSum<keepdims=0>(v, axis)", "", None),
    ],
)
def test_other_views_stay(body: str, outputs: str, reason: str | None) -> None:
    assert_left_alone(SplitParts(), graph(f"{PACKED}{outputs}) {{ {body} }}", **indices()), reason)


NEUTRAL = (
    "g (float[n, 4] x, bool[n] t, float one, float zero, float[2, 1, 1] wide, bool yes, bool no, float[1] row)"
    " => (float[n, 4] y"
)


def numbers() -> dict[str, np.ndarray]:
    return {
        "one": np.float32(1).reshape(()),
        "zero": np.float32(0).reshape(()),
        "wide": np.ones((2, 1, 1), np.float32),
        "yes": np.array(True),
        "no": np.array(False),
        "row": np.ones(1, np.float32),
    }


@pytest.mark.parametrize(
    "expression", ["Mul(x, one)", "Mul(row, x)", "Div(x, one)", "Add(zero, x)", "Sub(x, zero)", "Pow(x, one)"]
)
def test_arithmetic_that_changes_nothing_goes(expression: str) -> None:
    model = graph(f"{NEUTRAL}) {{ a = {expression} y = Neg(a) }}", **numbers())
    assert_fuses([NeutralElements()], model, {"Neg": 1}, 0, x=random(5, 4), t=np.ones(5, bool))


@pytest.mark.parametrize(
    ("expression", "nodes"), [("And(t, yes)", 1), ("Or(no, t)", 1), ("And(t, no)", 2), ("Or(t, yes)", 2)]
)
def test_logic_that_changes_nothing_goes(expression: str, nodes: int) -> None:
    text = NEUTRAL.replace("float[n, 4] y", "bool[n] y")
    model = graph(f"{text}) {{ a = {expression} y = Not(a) }}", **numbers())
    NeutralElements().apply(model)
    assert len(model.graph) == nodes


@pytest.mark.parametrize(
    "expression", ["Div(one, x)", "Sub(zero, x)", "Mul(x, zero)", "Add(x, one)", "Mul(x, wide)"]
)
def test_arithmetic_that_changes_something_stays(expression: str) -> None:
    text = NEUTRAL.replace("[n, 4] y", "[2, n, 4] y") if "wide" in expression else NEUTRAL
    assert_left_alone(
        NeutralElements(), graph(f"{text}) {{ a = {expression} y = Neg(a) }}", **numbers()), None
    )
