"""Lookups, their sum and its normalization become one node, with the same numbers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from pipeline.fuse.embed_layer_norm import EmbedLayerNorm
from pipeline.fuse.skip_layer_norm import SkipLayerNorm
from tests.fuse.graphs import assert_left_alone, assert_same, graph, operators, random, run, run_on_cpu

WEIGHTS = {
    "words": random(30, 8, seed=1),
    "types": random(2, 8, seed=2),
    "places": random(9, 8, seed=3),
    "weight": random(8, seed=4),
    "bias": random(8, seed=5),
}
TWO = "a = Gather<axis=0>(words, ids) b = Gather<axis=0>(places, at) s = Add({operands}) "
THREE = (
    "a = Gather<axis=0>(words, ids) b = Gather<axis=0>(types, kinds) c = Gather<axis=0>(places, at) ab = Add(a, b) "
    "s = Add({operands}) "
)
NORM = "y = LayerNormalization<axis=-1, epsilon=1e-6>(s, weight, bias)"


def model(body: str, output: str = "float[batch, length, 8] y") -> ir.Model:
    used = {name: array for name, array in WEIGHTS.items() if f"({name}," in body or f" {name}" in body}
    given = ", ".join(f"float[{', '.join(map(str, array.shape))}] {name}" for name, array in used.items())
    head = (
        "int64[batch, length] ids, int64[batch, length] kinds, int64[1, length] at, float[batch, length, 8] x"
    )
    return graph(f"g ({head}, {given}) => ({output}) {{ {body} }}", **used)


def feeds() -> dict[str, np.ndarray]:
    numbers = np.random.default_rng(0)
    return {
        "ids": numbers.integers(-30, 30, (3, 9)),
        "kinds": numbers.integers(0, 2, (3, 9)),
        "at": np.arange(9)[None],
        "x": random(3, 9, 8),
    }


@pytest.mark.parametrize(
    "body",
    [
        TWO.format(operands="a, b"),
        TWO.format(operands="b, a"),
        THREE.format(operands="ab, c"),
        THREE.format(operands="c, ab"),
    ],
    ids=["two", "positions first", "three", "three, positions first"],
)
@pytest.mark.parametrize("residual", [False, True], ids=["", "and a residual"])
def test_lookups_and_their_norm_become_one_node(body: str, residual: bool) -> None:
    fused = model(
        body + NORM + (" z = Tanh(s)" if residual else ""),
        "float[batch, length, 8] y" + ", float[batch, length, 8] z" * residual,
    )
    before = run(fused, **feeds())
    SkipLayerNorm().apply(fused)
    report = EmbedLayerNorm().apply(fused)
    assert (report.matched, report.near_misses) == (1, ())
    assert operators(fused) == {"EmbedLayerNormalization": 1, **({"Tanh": 1} if residual else {})}
    assert_same(before, run_on_cpu(fused, **feeds()), 5e-6)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (TWO.format(operands="a, b").replace("b = Gather<axis=0>(places, at)", "b = Tanh(x)") + NORM, None),
        (
            THREE.format(operands="ab, c").replace("c = Gather<axis=0>(places, at)", "c = Tanh(x)") + NORM,
            "3 values are summed, 2 of them",
        ),
    ],
    ids=["no lookup", "something else too"],
)
def test_other_sums_stay(body: str, reason: str | None) -> None:
    fused = model(body)
    SkipLayerNorm().apply(fused)
    assert_left_alone(EmbedLayerNorm(), fused, reason)


def test_rows_that_something_else_reads_stay() -> None:
    fused = model(
        TWO.format(operands="a, b") + NORM + " z = Tanh(a)",
        "float[batch, length, 8] y, float[batch, length, 8] z",
    )
    SkipLayerNorm().apply(fused)
    assert_left_alone(EmbedLayerNorm(), fused, None)
