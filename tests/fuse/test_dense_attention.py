"""Attention written out becomes the standard's operator, over rows where it can; then one product makes them."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.fuse.dense_attention import DenseAttention
from pipeline.fuse.qkv import Qkv
from pipeline.fuse.weights import read_origin

from .graphs import assert_fuses, assert_left_alone, graph, operators, random

HEADS, SIZE, WIDTH = 3, 4, 12
HEAD = (
    "g (float[b, n, 12] q0, float[b, m, 12] k0, float[b, m, 12] v0, float[b, 1, 1, m] mask, float[b, 1, n, m] full,"
    " float[n, m] square, float eighth, float two, int64[4] apart, int64[3] rows) => (float[b, n, 12] y"
)
Q = "q1 = Reshape(q0, apart) q = Transpose<perm=[0, 2, 1, 3]>(q1) "
K = "k1 = Reshape(k0, apart) k = Transpose<perm=[0, 2, 1, 3]>(k1) t = Transpose<perm=[0, 1, 3, 2]>(k) "
K_AT_ONCE = "k1 = Reshape(k0, apart) t = Transpose<perm=[0, 2, 3, 1]>(k1) "
V = "v1 = Reshape(v0, apart) v = Transpose<perm=[0, 2, 1, 3]>(v1) "
END = " o = MatMul(p, v) o1 = Transpose<perm=[0, 2, 1, 3]>(o) y = Reshape(o1, rows)"
SCORES = {
    "scaled after": "s = MatMul(q, t) s1 = Mul(s, eighth) p = Softmax<axis=-1>(s1)",
    "divided": "s = MatMul(q, t) s1 = Div(s, two) p = Softmax<axis=3>(s1)",
    "scaled before": "qs = Mul(q, eighth) s = MatMul(qs, t) p = Softmax<axis=-1>(s)",
    "both scaled": "qs = Mul(q, eighth) ts = Mul(two, t) s = MatMul(qs, ts) p = Softmax<axis=-1>(s)",
    "unscaled": "s = MatMul(q, t) p = Softmax<axis=-1>(s)",
    "mask": "s = MatMul(q, t) s1 = Mul(s, eighth) s2 = Add(s1, mask) p = Softmax<axis=-1>(s2)",
    "mask first": "s = MatMul(q, t) s1 = Div(s, two) s2 = Add(mask, s1) p = Softmax<axis=-1>(s2)",
    "full mask": "s = MatMul(q, t) s1 = Mul(s, eighth) s2 = Add(s1, full) p = Softmax<axis=-1>(s2)",
    "square mask": "s = MatMul(q, t) s1 = Mul(s, eighth) s2 = Add(s1, square) p = Softmax<axis=-1>(s2)",
}


def constants(eighth: float = 0.125) -> dict[str, np.ndarray]:
    return {
        "eighth": np.float32(eighth).reshape(()),
        "two": np.float32(2).reshape(()),
        "apart": np.array([0, 0, HEADS, SIZE]),
        "rows": np.array([0, 0, WIDTH]),
    }


def step(queries: int = 5, keys: int = 7) -> dict[str, np.ndarray]:
    """Two sequences; the second has two keys fewer."""
    hidden = np.finfo(np.float32).min
    mask = np.zeros((2, 1, 1, keys), np.float32)
    mask[1, 0, 0, -2:] = hidden
    full = np.broadcast_to(mask, (2, 1, queries, keys)).copy()
    full[0, 0, 0, :3] = hidden
    return {
        "q0": random(2, queries, WIDTH, seed=1),
        "k0": random(2, keys, WIDTH, seed=2),
        "v0": random(2, keys, WIDTH, seed=3),
        "mask": mask,
        "full": full,
        "square": random(queries, keys, seed=4),
    }


def model_of(body: str, outputs: str = ""):
    return graph(f"{HEAD}{outputs}) {{ {body} }}", **constants())


@pytest.mark.parametrize("keys", [K, K_AT_ONCE], ids=["transposed twice", "transposed at once"])
@pytest.mark.parametrize("scores", SCORES.values(), ids=SCORES)
def test_attention_over_rows_becomes_one_node(scores: str, keys: str) -> None:
    model = model_of(Q + keys + V + scores + END)
    wanted = {"Attention": 1}
    if "mask" in scores:  # its rows are spelled out
        wanted |= {"Shape": 1, "Concat": 1, "Expand": 1}
    (report,) = assert_fuses([DenseAttention()], model, wanted, 1e-5, **step())
    assert (report.matched, report.near_misses) == (1, ())


def test_rows_that_are_scaled_before_their_heads_move_apart() -> None:
    scaled = Q.replace("q1 = Reshape(q0, apart)", "q2 = Mul(eighth, q0) q1 = Reshape(q2, apart)")
    keys = K.replace("k1 = Reshape(k0, apart)", "k2 = Div(k0, two) k1 = Reshape(k2, apart)")
    model = model_of(scaled + keys + V + SCORES["unscaled"] + END)
    assert_fuses([DenseAttention()], model, {"Attention": 1}, 1e-5, **step())
    (node,) = model.graph
    assert node.attributes["scale"].as_float() == 0.0625


def test_heads_apart_stay_apart() -> None:
    """Something turns the queries (rotary embedding): the operator takes heads as they are."""
    model = model_of(
        Q + K + V + SCORES["mask"].replace("(q,", "(u,").replace("s = ", "u = Tanh(q) s = ") + END
    )
    wanted = {"Reshape": 4, "Transpose": 4, "Tanh": 1, "Attention": 1, "Shape": 1, "Concat": 1, "Expand": 1}
    assert_fuses([DenseAttention()], model, wanted, 1e-5, **step())


@pytest.mark.parametrize(
    ("body", "outputs", "reason"),
    [
        (Q + K + V + SCORES["mask"] + END, ", float[b, 3, n, m] p", "something else than the product"),
        (Q + K + V + SCORES["mask"] + END, ", float[b, 3, n, m] s1", "something else reads s1"),
        (
            Q + K + V + "s = MatMul(q, t) s1 = Tanh(s) p = Softmax<axis=-1>(s1)" + END,
            "",
            "no product of queries and keys",
        ),
        (
            Q
            + K_AT_ONCE.replace("[0, 2, 3, 1]", "[0, 2, 1, 3]")
            + V
            + "s = MatMul(q, t) p = Softmax<axis=-1>(s)"
            + END,
            "",
            "keys are not transposed",
        ),
        (Q + K + V + "s = MatMul(q, t) p = Softmax<axis=1>(s)" + END, "", None),
    ],
)
def test_other_softmaxes_stay(body: str, outputs: str, reason: str | None) -> None:
    assert_left_alone(DenseAttention(), model_of(body, outputs), reason)


def test_a_mask_of_more_axes_than_the_scores_is_left_alone() -> None:
    wide = HEAD.replace("float[b, 1, 1, m] mask", "float[b, 1, 1, 1] mask")
    model = graph(f"{wide}) {{ {Q + K + V + SCORES['mask'] + END} }}", **constants())
    assert_left_alone(DenseAttention(), model, "the mask has shape")


def test_an_opset_without_the_operator_is_left_alone() -> None:
    model = graph(f"{HEAD}) {{ {Q + K + V + SCORES['mask'] + END} }}", opset=22, **constants())
    assert_left_alone(DenseAttention(), model, "opset 22 has no Attention")


PROJECTED = (
    "g (float[b, n, 10] x, float[b, n, 10] z, float[10, 12] wq, float[10, 6] wk, float[10, 6] wv, float[12] bq,"
    " float[6] bk, float[6] bv) => (float[b, n, 12] y"
)
PRODUCTS = "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) "
BIASED = "q1 = MatMul(x, wq) q = Add(q1, bq) k1 = MatMul(x, wk) k = Add(bk, k1) v1 = MatMul(x, wv) v = Add(v1, bv) "
GROUPED = "y = Attention<q_num_heads=4, kv_num_heads=2>(q, k, v)"


def projections() -> dict[str, np.ndarray]:
    return {
        "wq": random(10, 12, seed=1),
        "wk": random(10, 6, seed=2),
        "wv": random(10, 6, seed=3),
        "bq": random(12, seed=4),
        "bk": random(6, seed=5),
        "bv": random(6, seed=6),
    }


@pytest.mark.parametrize(("body", "adds"), [(PRODUCTS, 0), (BIASED, 1)])
def test_query_key_and_value_come_of_one_product(body: str, adds: int) -> None:
    model = graph(f"{PROJECTED}) {{ {body} {GROUPED} }}", **projections())
    inputs = {"x": random(2, 5, 10, seed=7), "z": random(2, 5, 10)}
    wanted = {"MatMul": 1, "Split": 1, "Attention": 1} | ({"Add": 1} if adds else {})
    (report,) = assert_fuses([Qkv()], model, wanted, 1e-5, **inputs)
    assert (report.matched, report.near_misses) == (1, ())
    (weight,) = (value for value in model.graph.initializers.values() if value.shape == (10, 24))
    assert [(o.parameter, o.rows) for o in read_origin(weight)] == [
        ("model.wq", (0, 12)),
        ("model.wk", (0, 6)),
        ("model.wv", (0, 6)),
    ]


@pytest.mark.parametrize(
    ("body", "outputs", "reason"),
    [
        (PRODUCTS.replace("k = MatMul(x,", "k = MatMul(z,"), "", "different inputs"),
        (PRODUCTS + "w = Neg(k) ", ", float[b, n, 6] w", "something else reads k"),
        (PRODUCTS.replace("k = MatMul(x, wk)", "k1 = MatMul(x, wk) k = Add(k1, bk)"), "", "some have none"),
        (
            PRODUCTS.replace("k = MatMul(x, wk)", "k1 = MatMul(x, wk) k = Tanh(k1)"),
            "",
            "not all plain products",
        ),
    ],
)
def test_other_products_stay_apart(body: str, outputs: str, reason: str) -> None:
    model = graph(f"{PROJECTED}{outputs}) {{ {body} {GROUPED} }}", **projections())
    assert_left_alone(Qkv(), model, reason)
    assert operators(model)["MatMul"] == 3
