"""Equalized graphs of torch's own convolutions compute what torch does; ranges between neighbours become equal."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch

from calibration.equalizing import equalize_convolutions, pairs
from calibration.schemes import Scheme, dequantize, quantize


def network() -> torch.nn.Module:
    """Dense, depthwise and grouped convolutions whose channels' ranges lie far apart."""
    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 8, 3, padding=1, groups=8),
        torch.nn.LeakyReLU(0.2),
        torch.nn.Conv2d(8, 16, 1),
        torch.nn.ReLU6(),
        torch.nn.Conv2d(16, 8, 3, groups=2, bias=False),
        torch.nn.Conv2d(8, 4, 1),
    )
    with torch.no_grad():
        for place in (0, 2, 6):
            convolution = layers[place]
            assert isinstance(convolution, torch.nn.Conv2d)
            spread = torch.exp(torch.linspace(-3, 3, convolution.out_channels))
            convolution.weight *= spread.reshape(-1, 1, 1, 1)
    return layers.eval()


def exported(module: torch.nn.Module, inputs: torch.Tensor) -> ir.Model:
    program = torch.onnx.export(module, (inputs,), dynamo=True, input_names=["x"], verbose=False)
    assert program is not None
    return program.model


@functools.cache
def exported_network() -> bytes:
    """The network's graph, exported once."""
    return ir.to_proto(exported(network(), torch.randn(2, 3, 12, 12))).SerializeToString()


def model_of_network() -> ir.Model:
    return ir.from_proto(onnx.load_from_string(exported_network()))


def run(model: ir.Model, inputs: torch.Tensor) -> np.ndarray:
    message = ir.to_proto(model).SerializeToString()
    (y,) = ort.InferenceSession(message, providers=["CPUExecutionProvider"]).run(None, {"x": inputs.numpy()})
    result: np.ndarray = y
    return result


def test_outputs_stay_and_ranges_become_equal() -> None:
    module, inputs = network(), torch.randn(2, 3, 12, 12)
    model = model_of_network()
    found = pairs(model)
    assert len(found) == 3  # not across ReLU6, which 6 cuts off
    changed = equalize_convolutions(model)
    assert changed
    with torch.no_grad():
        np.testing.assert_allclose(run(model, inputs), module(inputs).numpy(), rtol=1e-4, atol=1e-4)
    for pair in found:
        first, second = (node.inputs[1].const_value.numpy() for node in pair)
        groups = pair.second.attributes.get_int("group", 1)
        before = np.abs(first).max(axis=(1, 2, 3))
        split = second.reshape(groups, len(second) // groups, second.shape[1], -1)
        np.testing.assert_allclose(before, np.abs(split).max(axis=(1, 3)).reshape(-1), rtol=0.01)


def test_one_scale_a_tensor_then_loses_less() -> None:
    module, inputs = network(), torch.randn(2, 3, 12, 12)
    errors = []
    for equal in (False, True):
        model = model_of_network()
        if equal:
            equalize_convolutions(model)
        for node in model.graph:
            if node.op_type == "Conv":
                weight = node.inputs[1]
                rounded = dequantize(quantize(weight.const_value.numpy(), Scheme("int8", "tensor")))
                weight.const_value = ir.tensor(rounded, name=weight.name)
        with torch.no_grad():
            errors.append(float(np.square(run(model, inputs) - module(inputs).numpy()).mean()))
    assert errors[1] < 0.5 * errors[0]


def test_channels_that_others_read_are_left() -> None:
    class Branched(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Conv2d(3, 4, 1), torch.nn.Conv2d(4, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            between = torch.relu(self.first(x))
            return self.second(between) + between

    assert pairs(exported(Branched().eval(), torch.randn(1, 3, 5, 5))) == []
