"""SkipLayerNormalization, BiasGelu and GeGLU on CPU against torch's own functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper
from torch.nn.functional import gelu as torch_gelu
from torch.nn.functional import layer_norm

from plugins.cpu.build import registered
from plugins.reference import elementwise
from plugins.schemas import DOMAIN, VERSION
from tests.plugins.attention_case import forced_isa

SHAPES = [(1, 2), (3, 5, 70), (2, 576), (40, 1536), (0, 8)]
ISAS = ["plain", "avx2", "avx512"]


def run_node(
    name: str, inputs: dict[str, torch.Tensor | None], outputs: int = 1, threads: int = 2, **attributes: Any
) -> list[np.ndarray[Any, Any]]:
    """Outputs of one node; inputs of None are absent."""
    given = {key: x for key, x in inputs.items() if x is not None}
    names = [key if x is not None else "" for key, x in inputs.items()]
    results = [f"result_{i}" for i in range(outputs)]
    node = helper.make_node(name, names, results, domain=DOMAIN, **attributes)
    infos = [
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in group]
        for group in (list(given), results)
    ]
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid(DOMAIN, VERSION)]
    model = helper.make_model(
        helper.make_graph([node], "one_node", *infos), opset_imports=opsets, ir_version=11
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    registered(options)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: list[np.ndarray[Any, Any]] = session.run(None, {key: x.numpy() for key, x in given.items()})
    return found


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("biases", [(), ("bias",), ("input_bias",), ("bias", "input_bias")])
def test_skip_layer_normalization(isa: str, shape: tuple[int, ...], biases: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    first, skip = torch.randn(shape) + 3, torch.randn(shape)
    weight, bias, input_bias = (torch.randn(shape[-1]) for _ in range(3))
    given = {
        "bias": bias if "bias" in biases else None,
        "input_bias": input_bias if "input_bias" in biases else None,
    }
    inputs = {"input": first, "skip": skip, "weight": weight, **given}
    with forced_isa(isa):
        output, total = run_node("SkipLayerNormalization", inputs, outputs=2, epsilon=1e-6)
        (alone,) = run_node("SkipLayerNormalization", inputs, epsilon=1e-6)
    added = first + skip + (input_bias if "input_bias" in biases else 0)
    wanted = layer_norm(added, shape[-1:], weight, given["bias"], eps=1e-6)
    np.testing.assert_allclose(total, added.numpy(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(output, wanted.numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(output, alone)
    reference = elementwise.skip_layer_normalization(
        first, skip, weight, given["bias"], given["input_bias"], 1e-6
    )
    np.testing.assert_allclose(reference[0].numpy(), wanted.numpy(), rtol=1e-5, atol=1e-5)


def test_a_large_mean_leaves_the_variance_its_digits() -> None:
    torch.manual_seed(0)
    first, skip, weight = torch.randn(4, 200) + 1000, torch.zeros(4, 200), torch.ones(200)
    (output,) = run_node("SkipLayerNormalization", {"input": first, "skip": skip, "weight": weight})
    wanted = layer_norm(first.double(), (200,), eps=1e-5)
    np.testing.assert_allclose(output, wanted.numpy(), atol=2e-4)


@pytest.mark.parametrize("rows", [(5, 70), (1, 5, 70), (70,), (1, 1, 70), (3, 5, 70)])
def test_a_skip_of_fewer_axes_repeats(rows: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    first, skip, weight = torch.randn(3, 5, 70), torch.randn(rows), torch.randn(70)
    (output,) = run_node("SkipLayerNormalization", {"input": first, "skip": skip, "weight": weight})
    wanted = layer_norm(first + skip, (70,), weight, eps=1e-5)
    np.testing.assert_allclose(output, wanted.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tanh", [0, 1])
def test_gelus(isa: str, shape: tuple[int, ...], tanh: int) -> None:
    torch.manual_seed(0)
    gate, up, bias = torch.randn(shape) * 4, torch.randn(shape), torch.randn(shape[-1])
    kind = "tanh" if tanh else "none"
    with forced_isa(isa):
        (biased,) = run_node("BiasGelu", {"input": gate, "bias": bias}, tanh=tanh)
        (gated,) = run_node("GeGLU", {"gate_up": torch.cat([gate, up], -1)}, tanh=tanh)
    # In float64: near -4 torch's own float32 loses 1e-6 to cancellation.
    wanted = torch_gelu((gate + bias).double(), approximate=kind).numpy()
    np.testing.assert_allclose(biased, wanted, rtol=1e-6, atol=5e-7)
    np.testing.assert_allclose(
        elementwise.bias_gelu(gate, bias, bool(tanh)).numpy(), wanted, rtol=2e-6, atol=2e-6
    )
    wanted = (torch_gelu(gate.double(), approximate=kind) * up.double()).numpy()
    np.testing.assert_allclose(gated, wanted, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("tanh", [0, 1])
def test_gelu_of_extreme_values(tanh: int) -> None:
    x = torch.tensor([[1e4, -1e4, 30.0, -30.0, 0.0]])
    (output,) = run_node("BiasGelu", {"input": x, "bias": torch.zeros(5)}, tanh=tanh)
    np.testing.assert_allclose(output, [[1e4, 0.0, 30.0, 0.0, 0.0]], atol=1e-30)


def test_rows_have_the_same_bits_alone_and_in_company() -> None:
    torch.manual_seed(0)
    x, skip, weight = torch.randn(33, 576), torch.randn(33, 576), torch.randn(576)
    for name, make in (
        ("SkipLayerNormalization", lambda r: {"input": x[r], "skip": skip[r], "weight": weight}),
        ("BiasGelu", lambda r: {"input": x[r], "bias": weight}),
        ("GeGLU", lambda r: {"gate_up": x[r]}),
    ):
        (together,) = run_node(name, make(slice(0, 33)))
        (single,) = run_node(name, make(slice(7, 8)), threads=1)
        np.testing.assert_array_equal(together[7:8], single)


@pytest.mark.parametrize(
    ("name", "shapes", "words"),
    [
        ("SkipLayerNormalization", ([3, 8], [2, 8], [8]), r"skip \[2, 8\].*skip must have input's last axes"),
        (
            "SkipLayerNormalization",
            ([3, 2, 8], [3, 1, 8], [8]),
            r"skip \[3, 1, 8\].*must have input's last axes",
        ),
        (
            "SkipLayerNormalization",
            ([2, 8], [1, 2, 8], [8]),
            r"skip \[1, 2, 8\].*must have input's last axes",
        ),
        ("SkipLayerNormalization", ([2, 8], [2, 8], [7]), r"weight \[7\]"),
        ("BiasGelu", ([2, 8], [1]), r"bias \[1\]; bias must be as long"),
        ("GeGLU", ([2, 7],), r"\[2, 7\]; its last axis must be even"),
    ],
)
def test_unlike_shapes_are_refused(name: str, shapes: tuple[list[int], ...], words: str) -> None:
    with pytest.raises(Exception, match=words):
        run_node(name, {f"input_{i}": torch.zeros(shape) for i, shape in enumerate(shapes)})
