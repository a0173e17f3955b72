"""RMSNorm written out becomes one node, with the same numbers, and only where nothing else reads its inside."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.fuse.rms_norm import RmsNorm

from .graphs import assert_same, graph, operators, random, run

HEAD = "g (float[n, 12] x, float[12] w, float two, float epsilon, int64[1] axes) => (float[n, 12] y"
SQUARES = {"pow": "square = Pow(x, two)", "mul": "square = Mul(x, x)"}
DIVISIONS = {
    "reciprocal": "r = Reciprocal(root) scaled = Mul(x, r)",
    "reciprocal first": "r = Reciprocal(root) scaled = Mul(r, x)",
    "div": "scaled = Div(x, root)",
}


def constants(epsilon: float = 1e-5, axis: int = -1) -> dict[str, np.ndarray]:
    return {
        "w": random(12, seed=1),
        "two": np.float32(2).reshape(()),
        "epsilon": np.float32(epsilon).reshape(()),
        "axes": np.array([axis]),
    }


def body(square: str = SQUARES["pow"], division: str = DIVISIONS["reciprocal"], more: str = "") -> str:
    return (
        f"{{ {square} mean = ReduceMean(square, axes) sum = Add(mean, epsilon) root = Sqrt(sum) "
        f"{division} y = Mul(w, scaled) {more} }}"
    )


@pytest.mark.parametrize("square", SQUARES)
@pytest.mark.parametrize("division", DIVISIONS)
@pytest.mark.parametrize("epsilon", [1e-6, 0.5])
def test_every_way_of_writing_it_becomes_one_node(square: str, division: str, epsilon: float) -> None:
    text = HEAD + ") " + body(SQUARES[square], DIVISIONS[division])
    model, x = graph(text, **constants(epsilon)), random(5, 12)
    before = run(model, x=x)
    report = RmsNorm().apply(model)
    assert (report.matched, report.nodes_after, report.near_misses) == (1, 1, ())
    assert operators(model) == {"RMSNormalization": 1}
    assert_same(before, run(model, x=x))


@pytest.mark.parametrize(
    ("text", "changed", "reason"),
    [
        (HEAD + ", float[n, 1] mean) " + body(), {}, "mean square"),
        (HEAD + ", float[n, 12] scaled) " + body(), {}, "no weight follows"),
        (HEAD + ", float[n, 12] z) " + body(more="z = Neg(scaled)"), {}, "no weight follows"),
        (HEAD + ", float[n, 1] z) " + body(more="z = Neg(root)"), {}, "does not just divide"),
        (HEAD + ") " + body(), {"axes": np.array([0])}, "not over the last axis"),
        (HEAD + ") " + body(), {"w": random(1, seed=1)}, "factor that follows"),
    ],
)
def test_what_only_looks_alike_is_left_alone(text: str, changed: dict[str, np.ndarray], reason: str) -> None:
    text = text.replace("float[12] w", "float[1] w") if "w" in changed else text
    model = graph(text, **{**constants(), **changed})
    report = RmsNorm().apply(model)
    assert report.matched == 0
    assert report.nodes_after == report.nodes_before
    (miss,) = report.near_misses
    assert reason in miss.reason


def test_an_opset_without_the_operator_is_left_alone() -> None:
    model = graph(HEAD + ") " + body(), opset=21, **constants())
    report = RmsNorm().apply(model)
    assert report.matched == 0
    assert "opset 21" in report.near_misses[0].reason


def test_two_norms_keep_their_own_epsilon() -> None:
    text = (
        "g (float[n, 12] x, float[12] w, float two, float epsilon, float other, int64[1] axes)"
        " => (float[n, 12] y, float[n, 12] z) { s = Pow(x, two) m = ReduceMean(s, axes) a = Add(m, epsilon)"
        " r = Sqrt(a) d = Div(x, r) y = Mul(d, w) t = Pow(x, two) k = ReduceMean(t, axes) b = Add(k, other)"
        " q = Sqrt(b) e = Div(x, q) z = Mul(e, w) }"
    )
    model = graph(text, **constants(1e-6), other=np.float32(0.1).reshape(()))
    x = random(3, 12)
    before = run(model, x=x)
    assert RmsNorm().apply(model).matched == 2
    after = run(model, x=x)
    assert_same(before, after)
    assert np.abs(after["y"] - after["z"]).max() > 1e-3
