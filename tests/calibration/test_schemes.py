"""Schemes against ONNX's reference evaluator, torch's FP8 and float64 by hand."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from onnxruntime.capi._pybind_state import quantize_matmul_4bits

from calibration.schemes import Scheme, dequantize, quantize, scales_shape
from model_repo.runtime.errors import BadInput

GENERATOR = np.random.default_rng(5)
WEIGHT = (GENERATOR.standard_normal((24, 70)) * GENERATOR.exponential(1, (24, 1))).astype(np.float32)
INTEGERS = {
    ("int8", False): (onnx.TensorProto.INT8, 0),
    ("uint8", False): (onnx.TensorProto.UINT8, 0),
    ("int4", False): (onnx.TensorProto.INT4, 0),
    ("int8", True): (onnx.TensorProto.INT8, 0),
    ("uint8", True): (onnx.TensorProto.UINT8, 128),
    ("int4", True): (onnx.TensorProto.INT4, 0),
}


def onnx_codes_and_numbers(array, scales, zeros, dtype, axis, block):
    """QuantizeLinear, then DequantizeLinear, by onnx's reference evaluator."""
    attributes = {} if axis is None else {"axis": axis}
    if block:
        attributes["block_size"] = block
    zero = onnx.helper.make_tensor("z", dtype, zeros.shape, zeros.reshape(-1))
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **attributes),
        onnx.helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **attributes),
        onnx.helper.make_node("Cast", ["q"], ["codes"], to=onnx.TensorProto.FLOAT),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, array.shape)],
        [
            onnx.helper.make_tensor_value_info("codes", onnx.TensorProto.FLOAT, None),
            onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None),
        ],
        [onnx.numpy_helper.from_array(scales, "s"), zero],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 24)])
    codes, numbers = ReferenceEvaluator(model).run(None, {"x": array})
    return codes, numbers


@pytest.mark.parametrize(
    ("granularity", "block", "axis"),
    [("tensor", None, None), ("channel", None, 0), ("channel", None, 1), ("block", 14, 1), ("block", 8, 0)],
)
@pytest.mark.parametrize(("name", "symmetric"), INTEGERS)
def test_integers_are_those_of_quantize_linear(name, symmetric, granularity, block, axis):
    scheme = Scheme(name, granularity, block, symmetric)
    made = quantize(WEIGHT, scheme, axis=axis)
    dtype, middle = INTEGERS[name, symmetric]
    zeros = np.full(made.scales.shape, middle) if made.zero_points is None else made.zero_points
    codes, numbers = onnx_codes_and_numbers(WEIGHT, made.scales, zeros, dtype, axis, block)
    assert np.array_equal(made.codes.astype(np.float32), codes)
    assert np.array_equal(dequantize(made), numbers)
    assert np.unique(codes).size == len({*codes.ravel()}) > (8 if name == "int4" else 100)


@pytest.mark.parametrize("granularity", ["tensor", "channel", "token"])
def test_e4m3_is_torchs(granularity):
    made = quantize(WEIGHT, Scheme("e4m3", granularity))
    scales = made.scales if granularity == "tensor" else made.scales[:, None]
    wanted = torch.from_numpy(WEIGHT / scales).clamp(-448, 448).to(torch.float8_e4m3fn)
    assert np.array_equal(made.codes.view(np.uint8), wanted.view(torch.uint8).numpy())
    assert np.array_equal(dequantize(made), wanted.float().numpy() * scales)


def test_every_e4m3_code_and_tie_rounds_as_torch_does():
    codes = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    codes = np.sort(codes[np.isfinite(codes)])
    middles = (codes[1:] + codes[:-1]) / 2
    numbers = np.concatenate([codes, middles, [1e9, -1e9, 449, 464, 465, -500]]).astype(np.float32)
    made = quantize(numbers, Scheme("e4m3"), 1.0)
    wanted = torch.from_numpy(numbers).clamp(-448, 448).to(torch.float8_e4m3fn)
    assert np.array_equal(made.codes.view(np.uint8), wanted.view(torch.uint8).numpy())


def test_halves_go_to_the_even_code_and_the_range_saturates():
    numbers = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 300, -300], np.float32)
    assert quantize(numbers, Scheme("int8"), 1.0).codes.tolist() == [0, 2, 2, 0, -2, 127, -127]
    plain = Scheme("int8", symmetric=False)
    assert quantize(numbers, plain, 1.0, 0).codes.tolist() == [0, 2, 2, 0, -2, 127, -128]
    assert quantize(numbers, Scheme("uint8"), 1.0).codes.tolist() == [128, 130, 130, 128, 126, 255, 1]
    assert quantize(numbers, Scheme("int4"), 1.0).codes.tolist() == [0, 2, 2, 0, -2, 7, -8]


def test_per_token_scales_are_of_the_row_alone():
    rows = GENERATOR.standard_normal((3, 5, 16)).astype(np.float32)
    made = quantize(rows, Scheme("uint8", "token"))
    assert made.scales.shape == (3, 5)
    alone = quantize(rows[1, 2], Scheme("uint8", "token"))
    assert np.array_equal(made.codes[1, 2], alone.codes)
    assert np.abs(dequantize(made) - rows).max() <= made.scales.max() / 2 * (1 + 1e-6)


def test_symmetric_int4_uses_the_whole_range_without_clipping():
    block = np.array([-8.0, 3.0, 6.0, 1.0], np.float32)
    made = quantize(block, Scheme("int4", "block", 4))
    assert made.scales.tolist() == [1.0]
    assert made.codes.tolist() == [-8, 3, 6, 1]


def test_nvfp4_is_two_levels_of_scales():
    made = quantize(WEIGHT, Scheme("nvfp4", "block", 16))
    assert made.scales.shape == (24, 5)
    assert made.tensor_scale == pytest.approx(float(np.abs(WEIGHT).max()) / (6 * 448), rel=1e-6)
    assert np.array_equal(made.scales, made.scales.astype(ml_dtypes.float8_e4m3fn).astype(np.float32))
    # By hand, in float64: the nearest of E2M1's eight magnitudes.
    magnitudes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    step = np.repeat(made.scales.astype(np.float64), 16, 1)[:, :70] * made.tensor_scale
    scaled = np.minimum(np.abs(WEIGHT / step), 6)
    best = np.abs(scaled[..., None] - magnitudes).min(-1)
    assert np.abs(np.abs(dequantize(made) / step) - scaled) == pytest.approx(best, abs=1e-5)


def test_mxfp8_scales_are_the_least_power_of_two_that_clips_nothing():
    made = quantize(WEIGHT, Scheme("mxfp8", "block", 32))
    largest = np.array([[np.abs(row[at : at + 32]).max() for at in range(0, 70, 32)] for row in WEIGHT])
    assert np.array_equal(np.log2(made.scales), np.ceil(np.log2(largest / 448)))
    exact = quantize(np.full(32, 448 * 2.0**-5, np.float32), Scheme("mxfp8", "block", 32))
    assert exact.scales.tolist() == [2.0**-5]


@pytest.mark.parametrize(
    "scheme",
    [
        Scheme("int8", "channel"),
        Scheme("uint8", "token", symmetric=False),
        Scheme("int4", "block", 32),
        Scheme("e4m3", "channel"),
        Scheme("nvfp4", "block", 16),
        Scheme("mxfp8", "block", 32),
    ],
    ids=str,
)
def test_dead_rows_have_scale_one_and_stay_zero(scheme):
    array = WEIGHT.copy()
    array[3] = 0
    array[4] = 1e-44
    made = quantize(array, scheme)
    assert np.isfinite(made.scales).all()
    assert (made.scales > 0).all()
    assert not dequantize(made)[3:5].any()
    assert scales_shape(array.shape, scheme) == made.scales.shape


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: quantize([1.0, np.nan, np.inf], Scheme("int8")), "2 of 3 numbers .* the first at"),
        (lambda: quantize(WEIGHT, Scheme("int8"), 0.0), "above zero"),
        (lambda: quantize(WEIGHT, Scheme("int8", "channel"), np.full(24, np.nan)), r"scale \[0\] .* nan"),
        (lambda: quantize(WEIGHT, Scheme("int8", "channel"), np.ones(70)), r"shape \[70\]; .*\[24\]"),
        (lambda: quantize(WEIGHT, Scheme("int8", "channel"), axis=2), "axis 2"),
        (lambda: quantize(WEIGHT, Scheme("int8"), 1.0, 3), "is symmetric"),
        (lambda: quantize(WEIGHT, Scheme("int8", symmetric=False), 1.0), "needs a zero point"),
        (lambda: Scheme("int5"), "known: int8, uint8"),
        (lambda: Scheme("int8", "row"), "known: tensor"),
        (lambda: Scheme("int4", "block"), "goes with a block size"),
        (lambda: Scheme("int8", "channel", 32), "goes with a block size"),
        (lambda: Scheme("nvfp4", "block", 32), "blocks of 16"),
        (lambda: Scheme("e4m3", symmetric=False), "no zero point"),
    ],
)
def test_what_means_nothing_is_refused_in_words(call, words):
    with pytest.raises(BadInput, match=words):
        call()


def onnxruntime_int4(weight, block):
    """ONNX Runtime's own symmetric rounding of [out, in]: codes of -8 to 7, and scales [out, blocks]."""
    out, width = weight.shape
    blocks = -(-width // block)
    packed = np.zeros((out, blocks, block // 2), np.uint8)
    scales = np.zeros(out * blocks, np.float32)
    zeros = np.zeros(out * ((blocks + 1) // 2), np.uint8)
    quantize_matmul_4bits(packed, np.ascontiguousarray(weight.T), scales, zeros, block, out, width, True)
    codes = np.stack([packed & 15, packed >> 4], -1).reshape(out, -1)[:, :width].astype(np.int8) - 8
    return codes, scales.reshape(out, blocks)


@pytest.mark.parametrize("width", [64, 80])
def test_signed_scales_are_onnx_runtimes(width):
    weight = WEIGHT[:, :1] * GENERATOR.standard_normal((24, width)).astype(np.float32)
    scheme = Scheme("int4", "block", 32, signed_scales=True)
    made = quantize(weight, scheme)
    codes, scales = onnxruntime_int4(weight, 32)
    assert np.array_equal(made.scales, scales)
    assert (made.scales < 0).any()
    assert (made.scales > 0).any()
    assert (made.codes.min(axis=1) == -8).all()
    apart = made.codes != codes  # it multiplies by 1 / scale, and rounds halves another way
    assert apart.mean() < 0.01
    assert np.abs(made.codes - codes).max() <= 1
    again = quantize(weight, scheme, made.scales)
    assert np.array_equal(again.codes, made.codes)
    plain = quantize(weight, Scheme("int4", "block", 32))
    assert np.square(dequantize(made) - weight).sum() < np.square(dequantize(plain) - weight).sum()


def test_signed_scales_are_for_symmetric_int4_and_never_zero():
    for name, symmetric in (("int8", True), ("int4", False)):
        with pytest.raises(BadInput, match="signed scales are for symmetric int4"):
            Scheme(name, "channel", symmetric=symmetric, signed_scales=True)
    scheme = Scheme("int4", "channel", signed_scales=True)
    assert quantize(np.zeros((2, 8), np.float32), scheme).scales.tolist() == [1, 1]
    for scale in (0.0, np.nan, -np.inf):
        with pytest.raises(BadInput, match="scales are finite"):
            quantize(WEIGHT, scheme, np.full(24, scale))
