"""Chains of casts, reshapes and transpositions; weights saved twice; arithmetic of weights; GeGLU."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from pipeline.fuse.arrangements import Arrangements
from pipeline.fuse.casts import Casts, lossless
from pipeline.fuse.duplicate_weights import DuplicateWeights
from pipeline.fuse.gate_up import GateUp
from pipeline.fuse.gated_halves import GeGlu
from pipeline.fuse.shared_subgraphs import SharedSubgraphs
from pipeline.fuse.unit_axis import UnitAxis
from pipeline.fuse.weight_arithmetic import WeightArithmetic
from pipeline.fuse.weights import Origin, read_origin, write_origin

from .graphs import assert_fuses, assert_left_alone, graph, random, run


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("a = Cast<to=11>(x) y0 = Cast<to=1>(a) y = Neg(y0)", {"Neg": 1}),
        ("y0 = Cast<to=1>(x) y = Neg(y0)", {"Neg": 1}),
        (
            "a = Cast<to=11>(x) y0 = Cast<to=10>(a) b = Cast<to=11>(y0) c = Cast<to=1>(b) y = Neg(c)",
            {"Cast": 2, "Neg": 1},
        ),
        ("a = Cast<to=7>(i) b = Cast<to=1>(a) y = Neg(b)", {"Cast": 1, "Neg": 1}),
    ],
)
def test_casts_that_lose_nothing_go(body: str, wanted: dict[str, int]) -> None:
    model = graph(f"g (float[n] x, int32[n] i) => (float[n] y) {{ {body} }}")
    assert_fuses([Casts()], model, wanted, 0, x=random(5), i=np.arange(5, dtype=np.int32) + 2**24)


@pytest.mark.parametrize("through", [10, 16, 7])
def test_a_cast_that_loses_digits_stays(through: int) -> None:
    model = graph(
        f"g (float[n] x) => (float[n] y) {{ a = Cast<to={through}>(x) b = Cast<to=1>(a) y = Neg(b) }}"
    )
    assert_left_alone(Casts(), model, "loses digits")


def test_lossless_is_what_numpy_calls_safe() -> None:
    names = "BOOL INT8 INT16 INT32 INT64 UINT8 UINT16 UINT32 UINT64 FLOAT16 FLOAT DOUBLE"
    kinds = [ir.DataType[name] for name in names.split()]
    for narrow in kinds:
        for wide in kinds:
            safe = np.can_cast(narrow.numpy(), wide.numpy(), "safe")
            # numpy lets 64-bit integers into float64, which rounds them.
            rounds = narrow in (ir.DataType.INT64, ir.DataType.UINT64) and wide == ir.DataType.DOUBLE
            assert lossless(narrow, wide) == (safe and not rounds), (narrow, wide)


CHAIN = (
    "g (float[b, n, 12] x, int64[4] apart, int64[3] rows, int64[2] flat, int64[1] one) => (float[b, n, 12] y"
)


def shapes() -> dict[str, np.ndarray]:
    return {
        "apart": np.array([0, 0, 3, 4]),
        "rows": np.array([0, 0, 12]),
        "flat": np.array([-1, 12]),
        "one": np.array([1]),
    }


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("a = Transpose<perm=[1, 0, 2]>(x) b = Transpose<perm=[1, 0, 2]>(a) y = Neg(b)", {"Neg": 1}),
        (
            "a = Transpose<perm=[2, 0, 1]>(x) b = Transpose<perm=[0, 2, 1]>(a) c = Neg(b)"
            " d = Transpose<perm=[2, 1, 0]>(c) y = Transpose<perm=[0, 1, 2]>(d)",
            {"Transpose": 2, "Neg": 1},
        ),
        ("a = Reshape(x, apart) b = Reshape(a, rows) y = Neg(b)", {"Neg": 1}),
        ("a = Unsqueeze(x, one) b = Neg(a) y = Squeeze(b, one)", {"Unsqueeze": 1, "Neg": 1, "Squeeze": 1}),
        ("a = Unsqueeze(x, one) b = Squeeze(a, one) y = Neg(b)", {"Neg": 1}),
        (
            "a = Reshape(x, flat) b = Neg(a) s = Shape(x) y = Reshape(b, s)",
            {"Reshape": 2, "Neg": 1, "Shape": 1},
        ),
    ],
)
def test_two_arrangements_become_one_or_none(body: str, wanted: dict[str, int]) -> None:
    model = graph(f"{CHAIN}) {{ {body} }}", **shapes())
    assert_fuses([Arrangements()], model, wanted, 0, x=random(2, 5, 12))


def test_a_computed_shape_that_is_known_is_written_down() -> None:
    body = "s = Shape<start=0, end=2>(x) t = Concat<axis=0>(s, two) a = Reshape(x, t) c = Neg(a) y = Reshape(c, rows)"
    text = CHAIN.replace("int64[1] one)", "int64[2] two)")
    model = graph(
        f"{text}) {{ {body} }}", **{k: v for k, v in shapes().items() if k != "one"}, two=np.array([3, 4])
    )
    for node in model.graph:
        if node.op_type in ("Reshape", "Neg") and node.outputs[0].name != "y":
            node.outputs[0].shape = ir.Shape(["b", "n", 3, 4])
    assert_fuses([Arrangements()], model, {"Reshape": 2, "Neg": 1}, 0, x=random(2, 5, 12))


def test_a_reshape_that_adds_an_axis_sinks_as_an_unsqueeze_does() -> None:
    model = graph(
        "g (float[n, 12] x, float[12, 12] w, int64[3] wide, int64[2] flat) => (float[n, 12] y) {"
        " a = Reshape(x, wide) b = MatMul(a, w) c = Neg(b) y = Reshape(c, flat) }",
        w=random(12, 12, seed=1),
        wide=np.array([1, -1, 12]),
        flat=np.array([-1, 12]),
    )
    for node in model.graph:
        node.outputs[0].shape = ir.Shape(["n", 12] if node.outputs[0].name == "y" else [1, "n", 12])
    assert_fuses([UnitAxis()], model, {"MatMul": 1, "Neg": 1}, 1e-6, x=random(5, 12))


def test_nodes_that_nobody_reads_go() -> None:
    model = graph("g (float[n] x) => (float[n] y) { a = Neg(x) b = Exp(a) y = Abs(x) }")
    (report,) = assert_fuses([SharedSubgraphs()], model, {"Abs": 1}, 0, x=random(4))
    assert report.matched == 2


TABLE = (
    "g (int32[n] ids, float[n, 40] x, float[40, 40] a, float[40, 40] b, float[40, 40] c) => (float[n, 40] y"
)


def test_weights_with_the_same_numbers_are_kept_once() -> None:
    same, other = random(40, 40), random(40, 40, seed=1)
    model = graph(
        f"{TABLE}) {{ p = MatMul(x, a) q = MatMul(p, b) y = MatMul(q, c) }}", a=same, b=other, c=same.copy()
    )
    inputs = {"ids": np.zeros(1, np.int32), "x": random(3, 40, seed=2)}
    before = run(model, **inputs)
    report = DuplicateWeights().apply(model)
    assert report.matched == 1
    assert set(model.graph.initializers) == {"a", "b"}
    assert read_origin(model.graph.initializers["a"]) == (
        Origin("model.a", None, transposed=False, equal=("model.c",)),
    )
    np.testing.assert_array_equal(run(model, **inputs)["y"], before["y"])


@pytest.mark.parametrize("how", ["one number", "type"])
def test_weights_that_differ_anywhere_stay_apart(how: str) -> None:
    first = random(40, 40)
    second = first.copy()
    second[39, 39] = np.nextafter(second[39, 39], np.float32(9)) if how == "one number" else second[39, 39]
    model = graph(
        f"{TABLE}) {{ p = MatMul(x, a) q = MatMul(p, b) y = MatMul(q, c) }}",
        a=first,
        b=random(40, 40, seed=3),
        c=second,
    )
    if how == "type":
        value = model.graph.initializers["c"]
        value.const_value = ir.tensor(second.view(np.int32), name="c")
    assert not DuplicateWeights().apply(model)
    assert set(model.graph.initializers) == {"a", "b", "c"}


def test_origins_survive_being_written_and_read() -> None:
    value = ir.Value(name="w")
    origins = (Origin("a", (2, 5), True, folded=("b", "+ 1")), Origin("c", None, False, equal=("d", "e")))
    write_origin(value, origins)
    assert read_origin(value) == origins


NORM = "g (float[n, 12] x, float[12] w, float one, float[12] v) => (float[n, 12] y"


@pytest.mark.parametrize(
    ("body", "number", "note", "wanted"),
    [
        ("s = Add(w, one) y = Mul(x, s)", 1.0, "+ 1", lambda w: w + 1),
        ("s = Add(one, w) y = Mul(x, s)", 1.0, "+ 1", lambda w: w + 1),
        ("s = Mul(w, one) y = Mul(x, s)", 0.5, "* 0.5", lambda w: w * 0.5),
        ("s = Sub(w, one) y = Mul(x, s)", 0.25, "- 0.25", lambda w: w - 0.25),
        ("s = Div(w, one) y = Mul(x, s)", 3.0, "/ 3", lambda w: w / np.float32(3)),
    ],
)
def test_arithmetic_of_a_weight_is_done_once(body, number, note, wanted) -> None:
    weight = random(12, seed=1)
    model = graph(f"{NORM}) {{ {body} }}", w=weight, v=random(12), one=np.float32(number).reshape(()))
    assert_fuses([WeightArithmetic()], model, {"Mul": 1}, 0, x=random(5, 12))
    stored = model.graph.initializers["w"]
    assert stored.const_value is not None
    np.testing.assert_array_equal(stored.const_value.numpy(), wanted(weight))
    assert read_origin(stored) == (Origin("model.w", None, False, folded=(note,)),)


@pytest.mark.parametrize(
    ("body", "outputs", "reason"),
    [
        ("s = Add(w, one) t = Mul(x, s) y = Mul(t, w)", "", "something else reads the weight w"),
        ("s = Sub(one, w) y = Mul(x, s)", "", None),
        ("s = Add(w, v) y = Mul(x, s)", "", None),
        ("s = Add(w, one) y = Mul(x, s)", ", float[12] s", None),
    ],
)
def test_other_arithmetic_stays(body: str, outputs: str, reason: str | None) -> None:
    model = graph(f"{NORM}{outputs}) {{ {body} }}", w=random(12), v=random(12), one=np.float32(1).reshape(()))
    assert_left_alone(WeightArithmetic(), model, reason)


GATED = "g (float[n, 12] x, float[12, 20] gate, float[12, 20] up) => (float[n, 20] y) {"


@pytest.mark.parametrize("kind", ["none", "tanh"])
def test_a_gelu_gate_becomes_a_product_and_one_node(kind: str) -> None:
    body = f'a = MatMul(x, gate) b = MatMul(x, up) g1 = Gelu<approximate="{kind}">(a) y = Mul(b, g1)'
    model = graph(f"{GATED} {body} }}", gate=random(12, 20, seed=1), up=random(12, 20, seed=2))
    packed, fused = assert_fuses([GateUp(), GeGlu()], model, {"MatMul": 1, "GeGLU": 1}, 1e-5, x=random(5, 12))
    assert (packed.matched, fused.matched) == (1, 1)
    (node,) = (node for node in model.graph if node.op_type == "GeGLU")
    assert node.attributes["tanh"].as_int() == (kind == "tanh")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("a, b = Split<axis=-1, num_outputs=2>(x) g1 = Gelu(b) y = Mul(a, g1)", "second half"),
        (
            "a, b = Split<axis=-1, num_outputs=2>(x) g1 = Gelu(a) c = Mul(b, g1) y = Add(c, g1)",
            "something else reads g1",
        ),
        ("a, b = Split<axis=-1, num_outputs=2>(x) g1 = Swish(a) y = Mul(b, g1)", None),
    ],
)
def test_what_is_no_geglu_stays(body: str, reason: str | None) -> None:
    model = graph(f"g (float[n, 12] x) => (float[n, 6] y) {{ {body} }}")
    assert_left_alone(GeGlu(), model, reason)
    assert Counter(node.op_type for node in model.graph)["Split"] == 1
