"""LayerNorm written out, residual sums before it, biases before GELU, and norms of heads."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.fuse.arrangements import Arrangements
from pipeline.fuse.bias_gelu import BiasGelu
from pipeline.fuse.head_norm import HeadNorm
from pipeline.fuse.layer_norm import LayerNorm
from pipeline.fuse.rms_norm import RmsNorm
from pipeline.fuse.shared_subgraphs import SharedSubgraphs
from pipeline.fuse.skip_layer_norm import SkipLayerNorm

from .graphs import assert_fuses, assert_left_alone, graph, operators, random

WRITTEN = (
    "m = ReduceMean(x, axes) d = Sub(x, m) s = Pow(d, two) v = ReduceMean(s, axes) a = Add(v, epsilon)"
    " r = Sqrt(a) q = Div(d, r) p = Mul(q, w) y = Add(p, b)"
)
HEAD = (
    "g (float[n, 12] x, float[12] w, float[12] b, float two, float epsilon, int64[1] axes, int64[1] first)"
    " => (float[n, 12] y"
)


def constants(epsilon: float = 1e-3, axis: int = -1, first: int = -1) -> dict[str, np.ndarray]:
    return {
        "w": random(12, seed=1),
        "b": random(12, seed=2),
        "two": np.float32(2).reshape(()),
        "epsilon": np.float32(epsilon).reshape(()),
        "axes": np.array([axis]),
        "first": np.array([first]),
    }


@pytest.mark.parametrize(
    "body",
    [
        WRITTEN,
        WRITTEN.replace("s = Pow(d, two)", "s = Mul(d, d)"),
        WRITTEN.replace("q = Div(d, r)", "i = Reciprocal(r) q = Mul(i, d)"),
        # torch subtracts the mean twice
        WRITTEN.replace("q = Div(d, r)", "e = Sub(x, m) q = Div(e, r)"),
    ],
)
def test_layer_norm_written_out_becomes_one_node(body: str) -> None:
    model = graph(f"{HEAD}) {{ {body} }}", **constants())
    rules = [SharedSubgraphs(), RmsNorm(), LayerNorm()]
    assert_fuses(rules, model, {"LayerNormalization": 1}, tolerance=1e-5, x=random(5, 12) + 2)
    (node,) = model.graph
    assert [value.name for value in node.inputs if value is not None] == ["x", "w", "b"]


def test_without_a_bias_two_inputs_are_left() -> None:
    model = graph(
        f"{HEAD}) {{ {WRITTEN.replace('p = Mul(q, w) y = Add(p, b)', 'y = Mul(q, w)')} }}", **constants()
    )
    assert_fuses([RmsNorm(), LayerNorm()], model, {"LayerNormalization": 1}, tolerance=1e-5, x=random(5, 12))
    (node,) = model.graph
    assert len(node.inputs) == 2


@pytest.mark.parametrize(
    ("body", "outputs", "changed", "reason"),
    [
        (WRITTEN, ", float[n, 12] d", {}, "something else reads d"),
        (
            WRITTEN.replace("ReduceMean(x, axes)", "ReduceMean(x, first)"),
            "",
            {"first": 0},
            "not over the last axis",
        ),
        (WRITTEN.replace("Sub(x, m)", "Sub(m, x)"), "", {}, None),
    ],
)
def test_other_norms_stay(body: str, outputs: str, changed: dict[str, int], reason: str | None) -> None:
    model = graph(f"{HEAD}{outputs}) {{ {body} }}", **constants(**changed))
    RmsNorm().apply(model)
    assert_left_alone(LayerNorm(), model, reason)


INPUTS = (
    "g (float[b, n, 12] x, float[b, n, 12] r, float[n, 12] rows, float[1, n, 12] places, float[12] w,"
    " float[12] shift, float[12] bias, float[7] odd) => (float[b, n, 12] y"
)
SUM = {
    "x": random(3, 4, 12, seed=3) + 2,
    "r": random(3, 4, 12, seed=4),
    "rows": random(4, 12, seed=5),
    "places": random(1, 4, 12, seed=6),
}
LAYER_NORM = "y = LayerNormalization<axis=-1, epsilon=0.01>(s, w, shift)"


def norm_weights() -> dict[str, np.ndarray]:
    return {
        "w": random(12, seed=1),
        "shift": random(12, seed=2),
        "bias": random(12, seed=7),
        "odd": random(7),
    }


@pytest.mark.parametrize(
    ("body", "inputs"),
    [
        (f"s = Add(x, r) {LAYER_NORM}", 4),
        (f"s = Add(rows, x) {LAYER_NORM}", 4),
        (f"s = Add(x, places) {LAYER_NORM}", 4),
        ("s = Add(x, r) y = LayerNormalization<axis=2, epsilon=0.01>(s, w)", 3),
        (f"t = Add(x, bias) s = Add(t, r) {LAYER_NORM}", 5),
        (f"t = Add(bias, x) s = Add(r, t) {LAYER_NORM}", 5),
        (f"t = Add(bias, x) s = Add(t, rows) {LAYER_NORM}", 5),
    ],
)
def test_a_sum_and_its_norm_become_one_node_and_the_sum_stays(body: str, inputs: int) -> None:
    model = graph(f"{INPUTS}, float[b, n, 12] z) {{ {body} z = Neg(s) }}", **norm_weights())
    (report,) = assert_fuses(
        [SkipLayerNorm()], model, {"SkipLayerNormalization": 1, "Neg": 1}, tolerance=1e-5, **SUM
    )
    assert (report.matched, report.near_misses) == (1, ())
    (node,) = (node for node in model.graph if node.op_type == "SkipLayerNormalization")
    assert len(node.inputs) == inputs
    assert model.opset_imports["slipway"] == 1


def test_a_bias_that_something_else_reads_stays_outside() -> None:
    body = f"t = Add(x, bias) s = Add(t, r) {LAYER_NORM} z = Neg(t)"
    model = graph(f"{INPUTS}, float[b, n, 12] z) {{ {body} }}", **norm_weights())
    wanted = {"Add": 1, "SkipLayerNormalization": 1, "Neg": 1}
    assert_fuses([SkipLayerNorm()], model, wanted, tolerance=1e-5, **SUM)
    (node,) = (node for node in model.graph if node.op_type == "SkipLayerNormalization")
    assert len(node.inputs) == 4  # what is added once is not added again


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (f"s = Add(x, bias) {LAYER_NORM}", "bias is a bias, no residual"),
        ("s = Add(x, r) y = LayerNormalization<axis=1>(s, rows)", "not over the last axis"),
        ("v = Neg(w) s = Add(x, r) y = LayerNormalization<axis=-1>(s, v, shift)", "computed in the graph"),
        ("s = Add(x, r) y, m = LayerNormalization<axis=-1>(s, w) z = Add(m, m)", "the mean or the deviation"),
        ("y = LayerNormalization<axis=-1>(x, w)", None),
    ],
)
def test_what_only_looks_like_a_residual_is_left_alone(body: str, reason: str | None) -> None:
    outputs = ", float[b, n, 1] z" if "z =" in body else ""
    model = graph(f"{INPUTS}{outputs}) {{ {body} }}", **norm_weights())
    assert_left_alone(SkipLayerNorm(), model, reason)


@pytest.mark.parametrize("kind", ["none", "tanh"])
@pytest.mark.parametrize("order", ["x, bias", "bias, x"])
def test_a_bias_and_its_gelu_become_one_node(kind: str, order: str) -> None:
    model = graph(f'{INPUTS}) {{ s = Add({order}) y = Gelu<approximate="{kind}">(s) }}', **norm_weights())
    assert_fuses(
        [BiasGelu()], model, {"BiasGelu": 1}, x=SUM["x"], r=SUM["r"], rows=SUM["rows"], places=SUM["places"]
    )
    (node,) = model.graph
    assert node.attributes["tanh"].as_int() == (kind == "tanh")


@pytest.mark.parametrize(
    ("body", "outputs", "reason"),
    [
        ("s = Add(x, bias) y = Gelu(s)", ", float[b, n, 12] s", "something else reads s"),
        ("s = Add(x, r) y = Gelu(s)", "", "what is added is not constant"),
        ("u = Unsqueeze(bias, axis) s = Add(x, u) y = Gelu(s)", "", "not constant"),
        ("y = Gelu(x)", "", None),
    ],
)
def test_other_gelus_stay(body: str, outputs: str, reason: str | None) -> None:
    text = INPUTS.replace("float[7] odd)", "float[7] odd, int64[1] axis)")
    model = graph(f"{text}{outputs}) {{ {body} }}", **norm_weights(), axis=np.array([0]))
    assert_left_alone(BiasGelu(), model, reason)


HEADS = "g (float[b, n, 3, 4] x, float[4] w, float[3, 1, 4] wide) => (float[b, 3, n, 4] y"


@pytest.mark.parametrize("norm", ["RMSNormalization", "LayerNormalization"])
def test_a_norm_of_heads_moves_before_their_transposition(norm: str) -> None:
    body = f"t = Transpose<perm=[0, 2, 1, 3]>(x) y = {norm}<axis=3, epsilon=0.01>(t, w)"
    model = graph(f"{HEADS}) {{ {body} }}", w=random(4, seed=1), wide=random(3, 1, 4))
    assert_fuses([HeadNorm()], model, {"Transpose": 1, norm: 1}, tolerance=1e-5, x=random(2, 5, 3, 4))
    assert [node.op_type for node in model.graph] == [norm, "Transpose"]


def test_then_transpositions_cancel() -> None:
    body = "t = Transpose<perm=[0, 2, 1, 3]>(x) u = RMSNormalization<axis=-1>(t, w) y = Transpose<perm=[0, 2, 1, 3]>(u)"
    model = graph(
        f"{HEADS.replace('[b, 3, n, 4] y', '[b, n, 3, 4] y')}) {{ {body} }}",
        w=random(4),
        wide=random(3, 1, 4),
    )
    assert_fuses([HeadNorm(), Arrangements()], model, {"RMSNormalization": 1}, x=random(2, 5, 3, 4))


@pytest.mark.parametrize(
    ("body", "outputs", "reason"),
    [
        (
            "t = Transpose<perm=[0, 2, 3, 1]>(x) u = RMSNormalization<axis=-1>(t, w2) y = Neg(u)",
            "",
            "moves the axis",
        ),
        (
            "t = Transpose<perm=[0, 2, 1, 3]>(x) y = RMSNormalization<axis=-1>(t, w)",
            ", float[b, 3, n, 4] t",
            "something else reads t",
        ),
        (
            "t = Transpose<perm=[0, 2, 1, 3]>(x) y = RMSNormalization<axis=-1>(t, wide)",
            "",
            "more than the last axis",
        ),
    ],
)
def test_other_norms_stay_where_they_are(body: str, outputs: str, reason: str) -> None:
    text = HEADS.replace("float[4] w,", "float[4] w, float[5] w2,").replace(
        "[b, n, 3, 4] x", "[b, 5, 3, 4] x"
    )
    text = text.replace("=> (float[b, 3, n, 4] y", "=> (float[b, 3, m, k] y")
    model = graph(
        f"{text}{outputs.replace('n, 4', '5, 4')}) {{ {body} }}",
        w=random(4),
        w2=random(5),
        wide=random(3, 1, 4),
    )
    assert_left_alone(HeadNorm(), model, reason)
    assert "Transpose" in operators(model)
