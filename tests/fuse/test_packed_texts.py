"""Padded texts become packed ones: the same numbers, whatever masks, biases and poolings are spelled like."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from pipeline.fuse.packed_texts import PackedTexts
from tests.fuse.graphs import assert_left_alone, assert_same, graph, operators, random, run, run_on_cpu

LENGTHS = (5, 1, 9)
LOWEST = np.array(np.finfo(np.float32).min, np.float32)
HEAD = (
    "g (int64[batch, length] input_ids, int64[batch, length] attention_mask, {weights}) "
    "=> ({output}) {known} {{ {body} }}"
)
EMBEDDED = "e0 = Gather<axis=0>(table, input_ids) "
QKV = "p0 = MatMul(e, w) p = Add(p0, b) q, k, v = Split<axis=-1, num_outputs=3>(p) "
MASK = "m0 = Unsqueeze(attention_mask, middle) m1 = Cast<to=1>(m0) m2 = Sub(one, m1) m = Mul(m2, lowest) "
PLACES = (
    "size = Shape(attention_mask) long = Gather<axis=0>(size, unit) places = Range(none, long, unit) "
    "across = Unsqueeze(places, front) down = Unsqueeze(places, last) ahead = Sub(across, down) "
)
WINDOW = (
    PLACES
    + "near0 = Abs(ahead) near = Less(near0, three) live0 = Cast<to=9>(attention_mask) "
    + "live = Unsqueeze(live0, middle) shown = And(near, live) m1 = Cast<to=1>(shown) m2 = Sub(one, m1) "
    + "m = Mul(m2, lowest) "
)
BIAS = PLACES + "far = Cast<to=1>(ahead) f4 = Unsqueeze(far, two) bias0 = Mul(f4, slopes) bias = Sin(bias0) "
ATTENTION = "a = Attention<q_num_heads=2, kv_num_heads=2>(q, k, v, m) r = Add(a, e) "
FLAGS = "flag = Unsqueeze(attention_mask, last1) "
POOLINGS = {
    "mean": FLAGS
    + "n = Cast<to=1>(flag) x = Mul(r, n) total = ReduceSum<keepdims=0>(x, axis) count = ReduceSum<keepdims=0>(n, axis)"
    " y = Div(total, count)",
    "weighted sum": FLAGS
    + "n0 = CumSum(flag, unit) n1 = Mul(n0, flag) n = Cast<to=1>(n1) x = Mul(n, r) y = ReduceSum<keepdims=0>(x, axis)",
    "first": "y = Gather<axis=1>(r, none)",
    "maximum": FLAGS
    + "gone = Equal(flag, none) x = Where(gone, lowest, r) y = ReduceMax<keepdims=0>(x, axis)",
    "last": "n = ReduceSum<keepdims=1>(attention_mask, axis) n1 = Sub(n, unit) n2 = Unsqueeze(n1, last1) "
    "index = Expand(n2, wide) y0 = GatherElements<axis=1>(r, index) y = Squeeze(y0, axis)",
    "tokens": "y = Relu(r)",
}
NUMBERS = {
    "table": random(20, 8, seed=1),
    "w": random(8, 24, seed=2),
    "b": random(24, seed=3),
    "slopes": random(1, 2, 1, 1, seed=4),
    "lowest": LOWEST,
    "one": np.array(1, np.float32),
    "none": np.array(0),
    "unit": np.array(1),
    "three": np.array(3),
    "middle": np.array([1, 2]),
    "two": np.array([0, 1]),
    "front": np.array([0]),
    "last": np.array([1]),
    "last1": np.array([2]),
    "axis": np.array([1]),
    "wide": np.array([1, 1, 8]),
}
TYPES = {np.dtype(np.float32): "float", np.dtype(np.int64): "int64"}


def encoder(
    mask: str = MASK, attention: str = ATTENTION, pooling: str = POOLINGS["mean"], embedded: str = ""
) -> ir.Model:
    body = EMBEDDED + (embedded or "e = Tanh(e0) ") + QKV + mask + attention + pooling
    used = {
        name: array
        for name, array in NUMBERS.items()
        if name in body.replace("(", " ").replace(")", " ").replace(",", " ").split()
    }
    shapes = [
        f"{TYPES[array.dtype]}[{', '.join(map(str, array.shape))}] {name}" for name, array in used.items()
    ]
    known = "<int64[length] places>" if "places" in body else ""  # what the exporter notes
    output = "float[batch, length, 8] y" if pooling == POOLINGS["tokens"] else "float[batch, 8] y"
    return graph(HEAD.format(weights=", ".join(shapes), output=output, known=known, body=body), **used)


def feeds() -> dict[str, np.ndarray]:
    mask = (np.arange(max(LENGTHS))[None, :] < np.array(LENGTHS)[:, None]).astype(np.int64)
    ids = np.random.default_rng(0).integers(0, 20, mask.shape)
    return {"input_ids": ids, "attention_mask": mask}


def assert_packed(model: ir.Model, tokens: bool = False) -> None:
    """One attention over packed rows, no padded one, and the numbers of onnx's evaluator."""
    given = feeds()
    before = run(model, **given)
    report = PackedTexts().apply(model)
    assert (report.matched, report.near_misses) == (1, ())
    found = operators(model)
    assert found["PackedAttention"] == found["PackedLayout"] == 1
    assert not found["Attention"]
    after = run_on_cpu(model, **given)
    if tokens:  # what is at padding is nobody's business, but it is zero
        live = given["attention_mask"].astype(bool)
        assert not after["y"][~live].any()
        before["y"][~live] = 0
    assert_same(before, after, 5e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_pooling_reads_packed_rows(pooling: str) -> None:
    assert_packed(encoder(pooling=POOLINGS[pooling]), tokens=pooling == "tokens")


def test_a_window_and_a_bias_go_into_the_operator() -> None:
    model = encoder(WINDOW)
    assert_packed(model)
    (node,) = (node for node in model.graph if node.op_type == "PackedAttention")
    assert (node.attributes["left_window"].as_int(), node.attributes["right_window"].as_int()) == (2, 2)
    biased = BIAS + MASK.replace(" m = ", " m3 = ") + "m = Add(bias, m3) "
    assert_packed(encoder(biased))


def test_a_causal_mask_is_a_window_to_one_side() -> None:
    model = encoder(
        WINDOW.replace("near0 = Abs(ahead) ", "").replace("Less(near0, three)", "Less(ahead, unit)")
    )
    assert_packed(model)
    (node,) = (node for node in model.graph if node.op_type == "PackedAttention")
    assert (node.attributes["left_window"].as_int(), node.attributes["right_window"].as_int()) == (-1, 0)


def test_positions_are_picked_for_each_token() -> None:
    positions = PLACES + "pe0 = Gather<axis=0>(table, places) pe1 = Unsqueeze(pe0, front) e = Add(e0, pe1) "
    assert_packed(encoder(embedded=positions))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: encoder(pooling="y = ReduceMean<keepdims=0>(r, axis)"), "is no pooling that is known"),
        (
            lambda: encoder(
                pooling="x0 = Transpose<perm=[0, 2, 1]>(r) x = CumSum(x0, unit) y = ReduceSum<keepdims=0>(x, last1)"
            ),
            "no pooling that is known",
        ),
        (lambda: encoder(MASK.replace("lowest", "slope").replace("slope)", "one)")), "adds other numbers"),
        (
            lambda: encoder(WINDOW.replace("Less(near0, three)", "Equal(near0, unit)")),
            "the mask of attention is no window",
        ),
        (
            lambda: encoder(
                attention=ATTENTION + "s = Softmax<axis=1>(r) ",
                pooling=POOLINGS["first"].replace("(r,", "(s,"),
            ),
            "does not work token by token",
        ),
        (
            lambda: encoder(attention=ATTENTION.replace("(q, k, v, m)", "(q, k, v)"), mask=""),
            "attention without a mask",
        ),
    ],
    ids=["mean with padding", "running sums", "small mask", "stripes", "softmax over texts", "no mask"],
)
def test_what_cannot_be_packed_stays_padded(model: object, reason: str) -> None:
    assert_left_alone(PackedTexts(), model(), reason)  # type: ignore[operator]


def test_other_graphs_are_no_near_misses() -> None:
    model = graph("g (float[n, 8] x, float[8, 8] w) => (float[n, 8] y) { y = MatMul(x, w) }", w=random(8, 8))
    assert_left_alone(PackedTexts(), model, None)
