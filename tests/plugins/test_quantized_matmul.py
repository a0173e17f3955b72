"""Products with quantized weights, quantized tables and rounded activations on CPU, against float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from calibration.schemes import Quantized, Scheme, dequantize, quantize
from plugins.column_blocks import pack_blocks, pack_bytes, storable_scales, unpack, unpack_block_scales
from plugins.cpu.build import registered
from plugins.reference.quantized_matmul import LARGEST_WIDE_CODE, fake_quantize_tokens, quantized_matmul
from plugins.schemas import DOMAIN, VERSION
from tests.plugins.attention_case import ISA_NUMBERS, forced_isa

BLOCK = 32
SIZES = [(1, 1, 1), (7, 33, 65), (13, 576, 200), (200, 64, 130), (0, 8, 8), (5, 1030, 33)]


def session(operator: str, inputs: dict[str, int], constants: dict[str, Any], threads: int = 2, **attributes):
    names = {
        "QuantizedMatMul": ["input", "weight", "weight_scale", "bias", "input_scale"],
        "QuantizedGather": ["weight", "weight_scale", "indices"],
        "QuantizedExpertLinear": ["input", "weight", "weight_scale", "expert_ids"],
        "FakeQuantizeTokens": ["input"],
    }[operator]
    given = [name if name in inputs or name in constants else "" for name in names]
    node = helper.make_node(operator, given, ["output"], domain=DOMAIN, **attributes)
    graph = helper.make_graph(
        [node],
        "one_node",
        [helper.make_tensor_value_info(name, kind, None) for name, kind in inputs.items()],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid(DOMAIN, VERSION)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=11)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    registered(options)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def packed(
    weight: np.ndarray, bits: int, block: int | None = None
) -> tuple[Quantized, dict[str, np.ndarray]]:
    """`block`: inputs with one scale; of 4-bit weights BLOCK where none is given."""
    if bits == 8 and block is None:
        made = quantize(weight, Scheme("int8", "channel"))
        return made, {"weight": pack_bytes(made.codes), "weight_scale": made.scales}
    size = block or BLOCK
    scheme = Scheme("int8", "block", size) if bits == 8 else Scheme("int4", "block", size, signed_scales=True)
    made = quantize(weight, scheme)
    codes, factor = pack_blocks(made.codes, made.scales, size, bits)
    halves = unpack_block_scales(codes, factor, len(weight))
    assert np.abs(halves / made.scales - 1).max(initial=0) <= 2**-11
    assert np.array_equal(halves, storable_scales(made.scales))
    return replace(made, scales=halves), {"weight": codes, "weight_scale": factor}


def numbers(*shape: int) -> np.ndarray:
    generator = np.random.default_rng(sum(shape))
    return (generator.standard_normal(shape) * generator.exponential(1, (*shape[:-1], 1))).astype(np.float32)


@pytest.mark.parametrize("isa", ISA_NUMBERS)
@pytest.mark.parametrize(("bits", "block"), [(8, None), (4, None), (4, BLOCK)])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_products_are_those_of_the_definition(
    isa: str, bits: int, block: int | None, sizes: tuple[int, int, int]
) -> None:
    """Also where each `block` of a row has a scale of its own."""
    rows, inputs, columns = sizes
    activations, weight, bias = numbers(rows, inputs), numbers(columns, inputs), numbers(columns)
    made, constants = packed(weight, bits)
    attributes = {"bits": bits, "columns": columns, "input_blocks": int(block is not None)}
    for given, scale in ((bias, None), (None, 0.0123)):
        extra = {} if given is None else {"bias": given}
        extra |= {} if scale is None else {"input_scale": np.float32(scale)}
        with forced_isa(isa):
            running = session("QuantizedMatMul", {"input": 1}, constants | extra, **attributes)
            (found,) = running.run(None, {"input": activations})
        wanted = quantized_matmul(activations, dequantize(made), given, scale, block)
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max(initial=0) <= 3e-6 * np.abs(wanted).max(initial=1)


@pytest.mark.parametrize("isa", ISA_NUMBERS)
@pytest.mark.parametrize("block", [8, 32, 128])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_rows_for_bytes_in_blocks_have_sixteen_bits(
    isa: str, block: int, sizes: tuple[int, int, int]
) -> None:
    """With a number in each row that is a thousand times the others: in eight bits it would leave nothing of them."""
    rows, inputs, columns = sizes
    activations, weight, bias = numbers(rows, inputs), numbers(columns, inputs), numbers(columns)
    activations[:, :1] *= 1000
    made, constants = packed(weight, 8, block)
    numbers_of_codes = dequantize(made).astype(np.float64)
    for given in (bias, None):
        extra = {} if given is None else {"bias": given}
        with forced_isa(isa):
            running = session("QuantizedMatMul", {"input": 1}, constants | extra, bits=8, columns=columns)
            (found,) = running.run(None, {"input": activations})
        wanted = quantized_matmul(activations, numbers_of_codes, given, largest=LARGEST_WIDE_CODE)
        rounding = 3e-6 * np.abs(wanted).max(initial=1)
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max(initial=0) <= rounding
        exact = activations.astype(np.float64) @ numbers_of_codes.T + (0 if given is None else given)
        half_steps = np.abs(activations).max(axis=1, keepdims=True, initial=0) / 2 / LARGEST_WIDE_CODE
        assert (np.abs(found - exact) <= half_steps * np.abs(numbers_of_codes).sum(axis=1) + rounding).all()


@pytest.mark.parametrize("isa", ISA_NUMBERS)
@pytest.mark.parametrize(("bits", "blocks", "size"), [(8, 0, None), (4, 0, None), (4, 1, None), (8, 0, 32)])
def test_a_row_has_the_same_bits_alone_and_in_company(
    isa: str, bits: int, blocks: int, size: int | None
) -> None:
    activations, weight = numbers(203, 96), numbers(100, 96)
    _, constants = packed(weight, bits, size)
    attributes = {"bits": bits, "columns": 100, "input_blocks": blocks}
    with forced_isa(isa):
        together = session("QuantizedMatMul", {"input": 1}, constants, **attributes)
        alone = session("QuantizedMatMul", {"input": 1}, constants, threads=1, **attributes)
        (every,) = together.run(None, {"input": activations})
        for first, last in ((0, 1), (5, 6), (131, 132), (202, 203), (0, 2), (40, 46), (3, 14)):
            (some,) = alone.run(None, {"input": activations[first:last]})
            assert np.array_equal(some.view(np.int32), every[first:last].view(np.int32))


@pytest.mark.parametrize("isa", ISA_NUMBERS)
@pytest.mark.parametrize(("bits", "blocks", "size"), [(8, 0, None), (4, 0, None), (4, 1, None), (8, 0, 32)])
def test_rows_that_are_not_finite_spoil_only_themselves(
    isa: str, bits: int, blocks: int, size: int | None
) -> None:
    activations, weight = numbers(4, 40), numbers(20, 40)
    _, constants = packed(weight, bits, size)
    attributes = {"bits": bits, "columns": 20, "input_blocks": blocks}
    running = session("QuantizedMatMul", {"input": 1}, constants, **attributes)
    (clean,) = running.run(None, {"input": activations})
    activations[1, 7], activations[2, 39] = np.inf, np.nan
    with forced_isa(isa):
        (found,) = running.run(None, {"input": activations})
    assert np.isnan(found[1:3]).all()
    assert np.allclose(found[[0, 3]], clean[[0, 3]], rtol=1e-6)


@pytest.mark.parametrize(("bits", "size"), [(8, None), (8, 32), (4, 32)])
@pytest.mark.parametrize("kind", [TensorProto.INT32, TensorProto.INT64])
def test_rows_of_a_table_are_its_numbers(bits: int, size: int | None, kind: int) -> None:
    table = numbers(50, 44)
    made, constants = packed(table, bits, size)
    running = session("QuantizedGather", {"indices": kind}, constants, bits=bits, columns=50, size=44)
    indices = np.array([[3, 49, 0], [17, 17, 31]], helper.tensor_dtype_to_np_dtype(kind))
    (found,) = running.run(None, {"indices": indices})
    assert np.array_equal(found, dequantize(made)[indices])
    with pytest.raises(Exception, match="index 1 is 50; the table has 50 rows"):
        running.run(None, {"indices": indices * 0 + np.array([0, 50, 0], indices.dtype)})


@pytest.mark.parametrize("isa", ISA_NUMBERS)
@pytest.mark.parametrize("size", [1, 15, 64, 129])
def test_rounded_activations_are_what_the_codes_stand_for(isa: str, size: int) -> None:
    rows = numbers(6, size)
    rows[2], rows[3] = 0, 1e-44
    with forced_isa(isa):
        (found,) = session("FakeQuantizeTokens", {"input": 1}, {}).run(None, {"input": rows})
    assert np.allclose(found, fake_quantize_tokens(rows), rtol=1e-6, atol=0)
    assert np.array_equal(found, dequantize(quantize(rows, Scheme("int8", "token"))))


@pytest.mark.parametrize(("bits", "size"), [(8, None), (8, 32), (4, 32)])
def test_packing_keeps_every_code(bits: int, size: int | None) -> None:
    made, constants = packed(numbers(37, 70), bits, size)
    assert np.array_equal(unpack(constants["weight"], bits, 37, 70), made.codes)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_scales_of_blocks_keep_eleven_bits_whatever_their_size(size: float) -> None:
    scales = (np.random.default_rng(3).uniform(1e-6, 1, (5, 4)) * size).astype(np.float32)
    codes, factor = pack_blocks(np.zeros((5, 4 * BLOCK), np.int8), scales, BLOCK, 4)
    assert np.allclose(unpack_block_scales(codes, factor, 5), scales, rtol=2**-11, atol=0)
    assert np.frexp(factor)[0] == 0.5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bits": 5}, "bits is 5; 4 and 8 are known"),
        ({"columns": 40}, r"for 40 inputs and 40 columns; they must be \[columns / 16, inputs / 4, 64\]"),
        ({"bits": 4}, r"they must be \[columns / 16, inputs / block, 8 \* block \+ 32\] and \[\]"),
        ({"bias": np.zeros(3, np.float32)}, r"bias has shape \[3\]; there are 20 columns"),
        ({"input_scale": np.float32(0)}, "it must be one number above zero"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], words: str) -> None:
    _, constants = packed(numbers(20, 40), 8)
    attributes = {"bits": 8, "columns": 20} | {k: v for k, v in change.items() if isinstance(v, int)}
    constants |= {k: v for k, v in change.items() if not isinstance(v, int)}
    running = session("QuantizedMatMul", {"input": 1}, constants, **attributes)
    with pytest.raises(Exception, match=words):
        running.run(None, {"input": numbers(2, 40)})


@pytest.mark.parametrize(
    ("block", "change", "words"),
    [
        (
            136,
            {},
            r"must be \[columns / 16, inputs / block, 16 \* block \+ 32\] and \[\], with blocks of up to 128",
        ),
        (32, {"input_blocks": 1}, "neither input_scale nor input_blocks goes with them"),
        (32, {"input_scale": np.float32(1)}, "neither input_scale nor input_blocks goes with them"),
    ],
)
def test_bytes_in_blocks_take_rows_with_their_own_scale(
    block: int, change: dict[str, Any], words: str
) -> None:
    _, constants = packed(numbers(20, 40), 8, block)
    attributes = {"bits": 8, "columns": 20} | {k: v for k, v in change.items() if isinstance(v, int)}
    constants |= {k: v for k, v in change.items() if not isinstance(v, int)}
    running = session("QuantizedMatMul", {"input": 1}, constants, **attributes)
    with pytest.raises(Exception, match=words):
        running.run(None, {"input": numbers(2, 40)})
