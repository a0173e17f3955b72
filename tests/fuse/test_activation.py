"""GELU in every spelling, and Swish, become one node; formulas with other numbers stay."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from pipeline.fuse.activation import Activation

from .graphs import assert_fuses, assert_left_alone, graph, random

NUMBERS = {
    "half": 0.5,
    "one": 1.0,
    "two": 2.0,
    "three": 3.0,
    "root": math.sqrt(2),
    "inverse": math.sqrt(0.5),
    "s": math.sqrt(2 / math.pi),
    "s2": 2 * math.sqrt(2 / math.pi),
    "c": 0.044715,
    "sc": math.sqrt(2 / math.pi) * 0.044715,
    "k": 1.702,
}
BY_ERF = {
    "transformers": "a = Div(x, root) e = Erf(a) b = Add(e, one) d = Mul(x, b) y = Mul(d, half)",
    "half first": "h = Mul(x, half) a = Mul(x, inverse) e = Erf(a) b = Add(one, e) y = Mul(h, b)",
    "half of the sum": "a = Mul(inverse, x) e = Erf(a) b = Add(e, one) d = Mul(half, b) y = Mul(x, d)",
    "spread out": "a = Div(x, root) e = Erf(a) h = Mul(e, half) b = Add(h, half) y = Mul(b, x)",
    "divided by two": "a = Div(x, root) e = Erf(a) b = Add(e, one) d = Mul(x, b) y = Div(d, two)",
    "two summands": "a = Div(x, root) e = Erf(a) h = Mul(x, half) g = Mul(h, e) y = Add(h, g)",
}
CUBE = "p = Pow(x, three) q = Mul(p, c) r = Add(x, q) "
BY_TANH = {
    "transformers": CUBE + "u = Mul(r, s) t = Tanh(u) b = Add(t, one) h = Mul(x, half) y = Mul(h, b)",
    "products": "p = Mul(x, x) q = Mul(p, x) r = Mul(c, q) v = Add(x, r) u = Mul(s, v) t = Tanh(u)"
    " b = Add(one, t) d = Mul(half, b) y = Mul(x, d)",
    "factored": "p = Mul(x, x) q = Mul(p, sc) r = Add(q, s) u = Mul(x, r) t = Tanh(u) b = Add(t, one)"
    " h = Mul(half, x) y = Mul(b, h)",
    "sigmoid": CUBE + "u = Mul(r, s2) t = Sigmoid(u) y = Mul(x, t)",
}
HEAD = "g (float[n, 12] x, " + ", ".join(f"float {name}" for name in NUMBERS) + ") => (float[n, 12] y"


def constants(**changed: float) -> dict[str, np.ndarray]:
    return {name: np.float32(number).reshape(()) for name, number in {**NUMBERS, **changed}.items()}


def model_of(body: str, outputs: str = "", opset: int = 24, **changed: float):
    return graph(f"{HEAD}{outputs}) {{ {body} }}", opset=opset, **constants(**changed))


X = random(5, 12) * 3


@pytest.mark.parametrize("body", BY_ERF.values(), ids=BY_ERF)
def test_gelu_by_erf(body: str) -> None:
    model = model_of(body)
    (report,) = assert_fuses([Activation()], model, {"Gelu": 1}, x=X)
    assert (report.matched, report.near_misses) == (1, ())
    (node,) = model.graph
    assert node.attributes["approximate"].as_string() == "none"


@pytest.mark.parametrize("body", BY_TANH.values(), ids=BY_TANH)
def test_gelu_by_tanh(body: str) -> None:
    model = model_of(body)
    assert_fuses([Activation()], model, {"Gelu": 1}, x=X)
    (node,) = model.graph
    assert node.attributes["approximate"].as_string() == "tanh"


@pytest.mark.parametrize(
    ("body", "alpha"),
    [("a = Mul(x, k) b = Sigmoid(a) y = Mul(x, b)", 1.702), ("b = Sigmoid(x) y = Mul(b, x)", 1.0)],
)
def test_x_times_a_sigmoid_is_swish(body: str, alpha: float) -> None:
    model = model_of(body)
    assert_fuses([Activation()], model, {"Swish": 1}, x=X)
    (node,) = model.graph
    assert node.attributes["alpha"].as_float() == pytest.approx(alpha, rel=1e-6)


def test_x_may_be_a_scaled_value_itself() -> None:
    body = "z = Mul(w, two) " + re.sub(r"\bx\b", "z", BY_ERF["transformers"])
    model = graph(
        HEAD.replace("[n, 12] x", "[n, 12] w") + f") {{ {body} }}",
        **constants(),
    )
    assert_fuses([Activation()], model, {"Mul": 1, "Gelu": 1}, w=X)


@pytest.mark.parametrize(
    ("body", "outputs", "changed", "reason"),
    [
        (BY_ERF["transformers"], ", float[n, 12] b", {}, "something else reads b"),
        (BY_ERF["transformers"] + " z = Neg(e)", ", float[n, 12] z", {}, "something else reads e"),
        (BY_ERF["transformers"], "", {"half": 0.4}, "not used as Gelu uses it"),
        (BY_ERF["transformers"], "", {"one": 1.1}, "not used as Gelu uses it"),
        (BY_ERF["transformers"], "", {"root": 1.5}, None),
        (BY_TANH["transformers"], "", {"c": 0.05}, "the tanh is of"),
        (BY_TANH["transformers"], "", {"three": 2.0}, None),
        (BY_TANH["sigmoid"], "", {"s2": 1.0}, None),
        ("a = Sigmoid(x) y = Mul(a, one)", "", {}, None),
        ("y = Tanh(x)", "", {}, None),
    ],
)
def test_other_formulas_stay(body: str, outputs: str, changed: dict[str, float], reason: str | None) -> None:
    assert_left_alone(Activation(), model_of(body, outputs, **changed), reason)


@pytest.mark.parametrize(
    ("body", "opset"), [(BY_ERF["transformers"], 19), ("b = Sigmoid(x) y = Mul(b, x)", 23)]
)
def test_an_opset_without_the_operator_is_left_alone(body: str, opset: int) -> None:
    assert_left_alone(Activation(), model_of(body, opset=opset), f"opset {opset} has no")
