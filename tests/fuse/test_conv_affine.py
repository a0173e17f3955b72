"""What scales and shifts a convolution's channels goes into its weight and bias."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.fuse.conv_affine import ConvAffine
from pipeline.fuse.weights import Origin, read_origin, write_origin

from .graphs import assert_fuses, assert_left_alone, graph, random

HEAD = (
    "g (float[n, 4, h, w] x, float[n, 6, h, w] other, float[6, 2, 3, 3] kernel, float[6] bias, float[6] scale,"
    " float[6] shift, float[6] mean, float[6] variance, float[6, 1, 1] rows, float[1, 6, 1, 1] more, float two,"
    " float[4] across) => (float[n, 6, h, w] y"
)
CONV = "c = Conv<pads=[1, 1, 1, 1], group=2>(x, kernel, bias) "
PLAIN = "c = Conv<pads=[1, 1, 1, 1], group=2>(x, kernel) "
NORM = "BatchNormalization<epsilon=0.01>(c, scale, shift, mean, variance)"
INPUTS = {"x": random(2, 4, 5, 4, seed=9), "other": random(2, 6, 5, 4, seed=10)}


def weights() -> dict[str, np.ndarray]:
    return {
        "kernel": random(6, 2, 3, 3, seed=1),
        "bias": random(6, seed=2),
        "scale": random(6, seed=3),
        "shift": random(6, seed=4),
        "mean": random(6, seed=5),
        "variance": random(6, seed=6) ** 2,
        "rows": random(6, 1, 1, seed=7),
        "more": random(1, 6, 1, 1, seed=8),
        "two": np.float32(2).reshape(()),
        "across": random(4),
    }


@pytest.mark.parametrize("conv", [CONV, PLAIN], ids=["bias", "no bias"])
@pytest.mark.parametrize(
    ("after", "matched"),
    [
        (f"y = {NORM}", 1),
        ("y = Mul(c, rows)", 1),
        ("y = Add(more, c)", 1),
        ("y = Mul(two, c)", 1),
        (f"d = {NORM} e = Mul(d, rows) y = Add(e, more)", 3),
    ],
)
def test_factors_and_summands_go_into_the_convolution(conv: str, after: str, matched: int) -> None:
    model = graph(f"{HEAD}) {{ {conv} {after} }}", **weights())
    (report,) = assert_fuses([ConvAffine()], model, {"Conv": 1}, 1e-5, **INPUTS)
    assert (report.matched, report.near_misses) == (matched, ())


def test_the_new_weights_are_those_of_torch() -> None:
    given = weights()
    model = graph(f"{HEAD}) {{ {CONV} y = {NORM} }}", **given)
    ConvAffine().apply(model)
    (node,) = model.graph
    conv = torch.nn.Conv2d(4, 6, 3, groups=2)
    norm = torch.nn.BatchNorm2d(6, eps=0.01)
    with torch.no_grad():
        for parameter, name in (
            (conv.weight, "kernel"),
            (conv.bias, "bias"),
            (norm.weight, "scale"),
            (norm.bias, "shift"),
            (norm.running_mean, "mean"),
            (norm.running_var, "variance"),
        ):
            assert parameter is not None
            parameter.copy_(torch.from_numpy(given[name]))
    wanted = torch.nn.utils.fuse_conv_bn_eval(conv.eval(), norm.eval())
    for index, expected in ((1, wanted.weight), (2, wanted.bias)):
        value = node.inputs[index]
        assert value is not None
        assert value.const_value is not None
        assert expected is not None
        np.testing.assert_allclose(value.const_value.numpy(), expected.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_origins_name_what_was_folded_in() -> None:
    model = graph(f"{HEAD}) {{ {CONV} y = {NORM} }}", **weights())
    for name in ("bias", "scale", "shift", "mean", "variance"):
        write_origin(model.graph.initializers[name], [Origin(name, None, transposed=False)])
    ConvAffine().apply(model)
    (node,) = model.graph
    for index, parameter in ((1, "model.kernel"), (2, "bias")):
        value = node.inputs[index]
        assert value is not None
        assert read_origin(value) == (
            Origin(parameter, None, transposed=False, folded=("scale", "shift", "mean", "variance")),
        )


@pytest.mark.parametrize(
    ("body", "outputs", "reason"),
    [
        (
            f"{CONV} y = {NORM} z = Neg(c)",
            ", float[n, 6, h, w] z",
            "something else than the BatchNormalization",
        ),
        (f"{CONV} y = Mul(c, rows)", ", float[n, 6, h, w] c", "something else than the Mul reads c"),
        (f"k = Neg(kernel) {CONV.replace('kernel', 'k')} y = Mul(c, rows)", "", "computed in the graph"),
        (
            f"{CONV} y = Mul(c, rows) z = Conv<pads=[1, 1, 1, 1], group=2>(x, kernel)",
            ", float[n, 6, h, w] z",
            "something else reads the weight kernel",
        ),
        (f"{CONV} y = Add(c, other)", "", None),
        (f"{CONV} y = Mul(c, across)", "", None),
        (f"{CONV} y = Relu(c)", "", None),
    ],
)
def test_what_is_no_affine_of_channels_stays(body: str, outputs: str, reason: str | None) -> None:
    text = HEAD.replace("float[n, 4, h, w] x", "float[n, 4, h, 4] x") if "across" in body else HEAD
    assert_left_alone(ConvAffine(), graph(f"{text}{outputs}) {{ {body} }}", **weights()), reason)
