"""Gate and up projections become one product, and silu(gate) * up one node."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.fuse.gate_up import GateUp
from pipeline.fuse.gated_halves import SwiGlu
from pipeline.fuse.weights import Origin, read_origin

from .graphs import assert_same, graph, operators, random, run

INPUTS = (
    "g (float[n, 12] x, float[12, 20] gate, float[12, 20] up, float[20] gate_bias, float[20] up_bias) => "
)
SILU = "sigmoid = Sigmoid(a) silu = Mul(a, sigmoid) y = Mul(silu, b)"
SWISH = "silu = Swish<alpha=1.0>(a) y = Mul(b, silu)"
PLAIN = "a = MatMul(x, gate) b = MatMul(x, up)"
BIASED = "p = MatMul(x, gate) q = MatMul(x, up) a = Add(p, gate_bias) b = Add(up_bias, q)"


def weights(width: int = 20) -> dict[str, np.ndarray]:
    return {
        "gate": random(12, width, seed=1),
        "up": random(12, 20, seed=2),
        "gate_bias": random(width, seed=3),
        "up_bias": random(20, seed=4),
    }


@pytest.mark.parametrize("activation", [SILU, SWISH])
@pytest.mark.parametrize("products", [PLAIN, BIASED])
def test_both_rules_leave_a_product_and_one_node(activation: str, products: str) -> None:
    model = graph(INPUTS + f"(float[n, 20] y) {{ {products} {activation} }}", **weights())
    x = random(5, 12)
    before = run(model, x=x)
    packed = GateUp().apply(model)
    assert (packed.matched, packed.near_misses) == (1, ())
    assert operators(model)["MatMul"] == 1
    assert_same(before, run(model, x=x))
    fused = SwiGlu().apply(model)
    assert (fused.matched, fused.near_misses) == (1, ())
    assert operators(model) == {"MatMul": 1, "SwiGLU": 1} | ({"Add": 1} if products == BIASED else {})
    assert_same(before, run(model, x=x))


def test_each_slice_of_the_packed_weight_is_its_parameter() -> None:
    given = weights()
    model = graph(INPUTS + f"(float[n, 20] y) {{ {BIASED} {SILU} }}", **given)
    GateUp().apply(model)
    for node, parts in (("MatMul", ["gate", "up"]), ("Add", ["gate_bias", "up_bias"])):
        (packed,) = (n.inputs[1] for n in model.graph if n.op_type == node)
        assert packed is not None
        assert packed.const_value is not None
        origins = read_origin(packed)
        assert origins == tuple(Origin(f"model.{part}", (0, 20), transposed=False) for part in parts)
        whole, start = packed.const_value.numpy(), 0
        for origin in origins:
            assert origin.rows is not None
            stop = start + origin.rows[1] - origin.rows[0]
            name = origin.parameter.removeprefix("model.")
            np.testing.assert_array_equal(whole[..., start:stop], given[name])
            start = stop


@pytest.mark.parametrize(
    ("body", "outputs", "reason"),
    [
        (f"{PLAIN} {SILU}", "float[n, 20] y, float[n, 20] b", "something else reads b"),
        (f"{PLAIN} {SILU} z = Neg(a)", "float[n, 20] y, float[n, 20] z", "something else reads a"),
        (f"{PLAIN} {SILU} z = Neg(silu)", "float[n, 20] y, float[n, 20] z", "something else reads silu"),
        (f"{PLAIN} {SILU} z = MatMul(x, up)", "float[n, 20] y, float[n, 20] z", "reads the weight up"),
        (f"v = Neg(x) a = MatMul(x, gate) b = MatMul(v, up) {SILU}", "float[n, 20] y", "different inputs"),
        (
            f"p = MatMul(x, gate) a = Add(p, gate_bias) b = MatMul(x, up) {SILU}",
            "float[n, 20] y",
            "have a bias",
        ),
    ],
)
def test_products_that_cannot_be_one_are_left_alone(body: str, outputs: str, reason: str) -> None:
    model = graph(INPUTS + f"({outputs}) {{ {body} }}", **weights())
    report = GateUp().apply(model)
    assert report.matched == 0
    assert reason in report.near_misses[0].reason


def test_a_gate_of_another_size_is_left_alone() -> None:
    text = INPUTS.replace("float[12, 20] gate", "float[12, 1] gate").replace(
        "float[20] gate_", "float[1] gate_"
    )
    model = graph(text + f"(float[n, 20] y) {{ {PLAIN} {SILU} }}", **weights(width=1))
    report = GateUp().apply(model)
    assert report.matched == 0
    assert "1 and 20 elements" in report.near_misses[0].reason


@pytest.mark.parametrize(
    ("body", "outputs", "reason"),
    [
        ("a, b = Split<axis=-1, num_outputs=2>(x)" + SILU, "float[n, 6] y, float[n, 6] a", "reads a"),
        ("b, a = Split<axis=-1, num_outputs=2>(x)" + SILU, "float[n, 6] y", "second half"),
        ("a, b = Split<axis=0, num_outputs=2>(x)" + SILU, "float[m, 12] y", "last axis"),
        ("a, b, c = Split<axis=-1, num_outputs=3>(x)" + SILU, "float[n, 4] y, float[n, 4] c", "3 parts"),
        ("a, b = Split<axis=-1>(x, sizes)" + SILU, "float[n, 11] y", "not one and the same"),
    ],
)
def test_splits_that_are_no_swiglu_are_left_alone(body: str, outputs: str, reason: str) -> None:
    text = f"g (float[n, 12] x, int64[2] sizes) => ({outputs}) {{ {body} }}"
    model = graph(text, sizes=np.array([1, 11]))
    report = SwiGlu().apply(model)
    assert report.matched == 0
    assert reason in report.near_misses[0].reason


def test_swish_of_another_steepness_is_no_silu() -> None:
    body = "a, b = Split<axis=-1, num_outputs=2>(x) silu = Swish<alpha=2.0>(a) y = Mul(b, silu)"
    model = graph(f"g (float[n, 12] x) => (float[n, 6] y) {{ {body} }}")
    assert SwiGlu().apply(model).matched == 0
