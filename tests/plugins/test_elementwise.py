"""SkipRMSNormalization and SwiGLU on CPU against torch's own functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper

from plugins.cpu.build import registered
from plugins.reference.elementwise import skip_rms_normalization, swiglu
from plugins.schemas import DOMAIN, VERSION
from tests.plugins.attention_case import forced_isa

SHAPES = [(1, 1), (3, 5, 70), (2, 576), (40, 1536), (0, 8)]


def run_node(
    name: str, outputs: list[str], threads: int = 2, **inputs: torch.Tensor
) -> list[np.ndarray[Any, Any]]:
    attributes = {"epsilon": 1e-6} if name == "SkipRMSNormalization" else {}
    node = helper.make_node(name, list(inputs), outputs, domain=DOMAIN, **attributes)
    infos = [
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names]
        for names in (inputs, outputs)
    ]
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid(DOMAIN, VERSION)]
    model = helper.make_model(
        helper.make_graph([node], "one_node", *infos), opset_imports=opsets, ir_version=11
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    registered(options)
    running = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    result: list[np.ndarray[Any, Any]] = running.run(None, {n: x.numpy() for n, x in inputs.items()})
    return result


@pytest.mark.parametrize("isa", ["plain", "avx2", "avx512"])
@pytest.mark.parametrize("shape", SHAPES)
def test_skip_rms_normalization(isa: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    first, skip, weight = torch.randn(shape), torch.randn(shape), torch.randn(shape[-1])
    with forced_isa(isa):
        output, total = run_node("SkipRMSNormalization", ["y", "s"], input=first, skip=skip, weight=weight)
        (output_only,) = run_node("SkipRMSNormalization", ["y"], input=first, skip=skip, weight=weight)
    wanted = torch.nn.functional.rms_norm(first + skip, shape[-1:], weight, eps=1e-6)
    np.testing.assert_array_equal(total, (first + skip).numpy())
    np.testing.assert_allclose(output, wanted.numpy(), rtol=2e-6, atol=1e-6)
    np.testing.assert_array_equal(output, output_only)
    np.testing.assert_allclose(
        skip_rms_normalization(first, skip, weight, 1e-6)[0].numpy(), wanted.numpy(), rtol=2e-6, atol=1e-6
    )


@pytest.mark.parametrize("isa", ["plain", "avx2", "avx512"])
@pytest.mark.parametrize("shape", SHAPES)
def test_swiglu(isa: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    gate, up = torch.randn(shape) * 8, torch.randn(shape)
    gate_up = torch.cat([gate, up], dim=-1)
    with forced_isa(isa):
        (output,) = run_node("SwiGLU", ["y"], gate_up=gate_up)
    wanted = torch.nn.functional.silu(gate) * up
    np.testing.assert_allclose(output, wanted.numpy(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(swiglu(gate_up).numpy(), wanted.numpy(), rtol=1e-6, atol=1e-6)


def test_swiglu_of_extreme_gates() -> None:
    gate_up = torch.tensor([[1e4, -1e4, 90.0, -90.0, 1.0, 1.0, 1.0, 1.0]])
    (output,) = run_node("SwiGLU", ["y"], gate_up=gate_up)
    np.testing.assert_allclose(output, [[1e4, 0.0, 90.0, 0.0]], atol=1e-30)


def test_rows_have_the_same_bits_alone_and_in_company() -> None:
    torch.manual_seed(0)
    first, skip, weight = torch.randn(33, 576), torch.randn(33, 576), torch.randn(576)
    (together,) = run_node("SkipRMSNormalization", ["y"], input=first, skip=skip, weight=weight)
    (single,) = run_node("SkipRMSNormalization", ["y"], 1, input=first[7:8], skip=skip[7:8], weight=weight)
    np.testing.assert_array_equal(together[7:8], single)


def test_odd_gate_up_is_refused() -> None:
    with pytest.raises(Exception, match=r"gate_up has shape \[2, 7\]; its last axis must be even"):
        run_node("SwiGLU", ["y"], gate_up=torch.zeros(2, 7))


def test_unlike_shapes_are_refused() -> None:
    with pytest.raises(Exception, match=r"input has shape \[2, 8\], skip \[1, 8\]"):
        run_node(
            "SkipRMSNormalization",
            ["y"],
            input=torch.zeros(2, 8),
            skip=torch.zeros(1, 8),
            weight=torch.ones(8),
        )
