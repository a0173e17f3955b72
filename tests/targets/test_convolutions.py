"""Quantized convolutions: where rounding is written, and that integer operators give what the graph of codes says."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from calibration.schemes import Scheme, dequantize, quantize
from model_repo.runtime.errors import BadInput, SlipwayError
from pipeline.quantize.convolutions import convolution_schemes, convolutions
from pipeline.quantize.nodes import Step
from pipeline.quantize.policy import POLICIES
from pipeline.quantize.verify import verify
from pipeline.quantize.write import Written, write
from pipeline.targets.convolutions import lower_convolutions

CPU = POLICIES["onnxruntime"]
Array = npt.NDArray[np.float32]


class Network(torch.nn.Module):
    """A pooled chain, a residual sum, a depthwise and a grouped convolution, strides, dilation, no bias."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 16, 3, padding=1)
        self.second = torch.nn.Conv2d(16, 16, 3, padding=1)
        self.third = torch.nn.Conv2d(16, 16, 3, padding=2, dilation=2)
        self.depthwise = torch.nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16)
        self.grouped = torch.nn.Conv2d(16, 8, (1, 3), groups=2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x float32 [batch, 3, height, width]."""
        x = torch.nn.functional.max_pool2d(self.stem(x).relu(), 2)
        x = torch.relu(x + self.third(self.second(x).relu()))
        return self.grouped(self.depthwise(x))  # type: ignore[no-any-return]


@functools.cache
def exported() -> bytes:
    torch.manual_seed(1)
    program = torch.onnx.export(
        Network().eval(), (torch.randn(2, 3, 13, 14),), dynamo=True, input_names=["x"], verbose=False,
        dynamic_shapes=({0: "batch"},),
    )  # fmt: skip
    assert program is not None
    return ir.to_proto(program.model).SerializeToString()


def model() -> ir.Model:
    return ir.from_proto(onnx.load_from_string(exported()))


def images(count: int) -> Array:
    return np.random.default_rng(count).standard_normal((count, 3, 13, 14)).astype(np.float32)


def run(graph: ir.Model, inputs: Array) -> Array:
    message = ir.to_proto(graph).SerializeToString()
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    opened = ort.InferenceSession(message, options, providers=["CPUExecutionProvider"])
    found: Array = opened.run(None, {"x": inputs})[0]
    return found


def ranges() -> dict[str, tuple[float, float]]:
    """Smallest and largest number of each tensor that a convolution reads, on other images."""
    graph = model()
    values = [layer.inputs for layer in convolutions(graph)]
    graph.graph.outputs[:] = [value for value in values if value.producer() is not None]
    message = ir.to_proto(graph).SerializeToString()
    opened = ort.InferenceSession(message, providers=["CPUExecutionProvider"])
    found = dict(
        zip([item.name for item in opened.get_outputs()], opened.run(None, {"x": images(64)}), strict=True)
    )
    found["x"] = images(64)
    return {name: (float(array.min()), float(array.max())) for name, array in found.items()}


def step_of(name: str, scheme: Scheme) -> Step:
    low, high = ranges()[name]
    made = quantize(np.array([low, high], np.float32), scheme)
    return Step(float(made.scales), 0 if made.zero_points is None else int(made.zero_points))


def quantized() -> tuple[ir.Model, Written]:
    graph = model()
    written = write(graph, CPU, convolution_schemes(graph, CPU, "int8"), scale_of=step_of)
    return graph, written


def operators(graph: ir.Model) -> list[str]:
    return [node.op_type for node in graph.graph]


def test_both_operands_of_each_convolution_are_codes_and_what_they_share_is_rounded_once() -> None:
    graph, written = quantized()
    verify(graph, written)
    assert len(written.products) == 5
    assert written.kept == ()
    for node in graph.graph:
        if node.op_type == "Conv":
            assert [value.producer().op_type for value in node.inputs[:2]] == ["DequantizeLinear"] * 2
        if node.op_type == "Add":
            assert "DequantizeLinear" not in [value.producer().op_type for value in node.inputs]
    (codes,) = (value for name, value in graph.graph.initializers.items() if name == "stem.weight.codes")
    (scale,) = (value for name, value in graph.graph.initializers.items() if name == "stem.weight.scale")
    weight = model().graph.initializers["stem.weight"].const_value.numpy()
    wanted = dequantize(quantize(weight, Scheme("int8", "channel")))
    assert np.array_equal(codes.const_value.numpy() * scale.const_value.numpy().reshape(-1, 1, 1, 1), wanted)
    assert (
        np.abs(run(graph, images(5)) - run(model(), images(5))).max()
        < 0.03 * np.abs(run(model(), images(5))).max()
    )


def test_integer_operators_give_what_the_graph_of_codes_says() -> None:
    graph, _ = quantized()
    wanted = run(graph, images(5))
    lower_convolutions(graph)
    found = operators(graph)
    # The stem's pool is read by the residual sum too; the first of the branch gives codes to the second.
    assert (found.count("QLinearConv"), found.count("ConvInteger"), found.count("Conv")) == (2, 3, 0)
    assert found.count("QuantizeLinear") == 3
    given = run(graph, images(5))
    assert np.abs(given - wanted).max() < 0.02 * np.abs(wanted).max()  # codes beside a border
    assert np.abs(given - wanted).mean() < 1e-3 * np.abs(wanted).max()


def test_pools_between_convolutions_choose_codes() -> None:
    """MaxPool and ReLU before rounding give the very codes that come from rounding first."""
    graph = ir.from_proto(onnx.load_from_string(pooled()))
    wanted_schemes = convolution_schemes(graph, CPU, "int8")
    write(graph, CPU, wanted_schemes, scale_of=lambda name, scheme: Step(0.02, 128 if name == "x" else 0))
    wanted = run(graph, images(3))
    lower_convolutions(graph)
    assert operators(graph).count("QLinearConv") == 1
    assert operators(graph).count("Relu") == 0
    (pool,) = (node for node in graph.graph if node.op_type == "MaxPool")
    assert pool.inputs[0].producer().op_type == "QLinearConv"
    assert np.abs(run(graph, images(3)) - wanted).max() < 0.02 * np.abs(wanted).max()


def test_a_relu_before_codes_below_zero_is_computed() -> None:
    """Its zero is not the lowest code, so that rounding alone would let negative numbers through."""
    graph = ir.from_proto(onnx.load_from_string(pooled()))
    write(graph, CPU, convolution_schemes(graph, CPU, "int8"), scale_of=lambda name, scheme: Step(0.02, 100))
    wanted = run(graph, images(3))
    lower_convolutions(graph)
    assert operators(graph).count("Relu") == 1
    assert np.abs(run(graph, images(3)) - wanted).max() < 0.02 * np.abs(wanted).max()


@functools.cache
def pooled() -> bytes:
    torch.manual_seed(2)
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, bias=False),
        torch.nn.MaxPool2d(3, 2, 1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 4, 3),
    )
    program = torch.onnx.export(
        layers.eval(), (torch.randn(3, 3, 13, 14),), dynamo=True, input_names=["x"], verbose=False
    )
    assert program is not None
    return ir.to_proto(program.model).SerializeToString()


@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_LAYOUT"])
def test_an_image_has_the_same_bits_alone_and_in_a_batch(level: str) -> None:
    graph, _ = quantized()
    lower_convolutions(graph)
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    opened = ort.InferenceSession(
        ir.to_proto(graph).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    batch = images(7)
    together = opened.run(None, {"x": batch})[0]
    for place in range(7):
        assert np.array_equal(opened.run(None, {"x": batch[place : place + 1]})[0][0], together[place])


def test_a_bias_beyond_32_bits_is_added_in_float32() -> None:
    """A channel whose weights are next to nothing has sums in tiny units, of which its bias is too many."""
    graph = ir.from_proto(onnx.load_from_string(pooled()))
    first, second = (layer.node for layer in convolutions(graph))
    bias = ir.Value(name="bias", const_value=ir.tensor(np.full(8, 3, np.float32), name="bias"))
    graph.graph.register_initializer(bias)
    first.resize_inputs(3)
    first.replace_input_with(2, bias)
    weight = first.inputs[1].const_value.numpy().copy()
    weight[2] = 1e-12
    first.inputs[1].const_value = ir.tensor(weight, name=first.inputs[1].name)
    write(graph, CPU, convolution_schemes(graph, CPU, "int8"), scale_of=lambda name, scheme: Step(0.02, 100))
    wanted = run(graph, images(3))
    lower_convolutions(graph)
    assert "QLinearConv" not in operators(graph)
    np.testing.assert_allclose(run(graph, images(3)), wanted, rtol=1e-3, atol=1e-3)
    assert second is not None


def test_what_is_half_quantized_is_found() -> None:
    graph, written = quantized()
    node = next(node for node in graph.graph if node.op_type == "Conv")
    rounded = node.inputs[0].producer()
    node.replace_input_with(0, rounded.inputs[0].producer().inputs[0])
    with pytest.raises(SlipwayError, match="half quantized"):
        verify(graph, written)


def test_a_file_of_precisions_says_which_stay_in_floating_point() -> None:
    graph = model()
    schemes = convolution_schemes(graph, CPU, "mixed", {"second.weight": "int8", "third.weight": "fp32"})
    written = write(graph, CPU, schemes, scale_of=step_of)
    verify(graph, written)
    assert len(written.products) == 1
    assert len(written.kept) == 4
    with pytest.raises(BadInput, match=r"'third\.weight' precision 'int4'; known: int8, fp32"):
        convolution_schemes(graph, CPU, "mixed", {"third.weight": "int4"})
    assert convolution_schemes(graph, CPU, "int4") == {}


def test_tensorrt_reads_symmetric_codes() -> None:
    graph, policy = model(), POLICIES["tensorrt"]
    schemes = convolution_schemes(graph, policy, "int8")
    verify(graph, write(graph, policy, schemes, scale_of=step_of))
    zeros = {
        int(node.inputs[2].const_value.numpy()) for node in graph.graph if node.op_type == "QuantizeLinear"
    }
    assert zeros == {0}
    assert {str(scheme.activation) for scheme in schemes.values()} == {"int8 per tensor"}
