"""Each operator of the table against onnx's reference evaluator, and what is refused by name."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import parser
from onnx.reference import ReferenceEvaluator

from model_repo.runtime.errors import BadInput
from plugins.graph_walk.description import Graph, Node
from plugins.graph_walk.engine import WalkingEngine
from plugins.graph_walk.onnx_file import described
from plugins.graph_walk.quantized import dequantize, quantize
from plugins.graph_walk.standard import STANDARD
from tests.plugins.graph_walk.walking import CPU, walk

RANDOM = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


ROWS, PICTURE = {"x": normal(3, 6)}, {"x": normal(2, 4, 9, 7)}
X, IMAGE = "float[a, 6] x", "float[a, 4, 9, 7] x"
CASES: dict[str, tuple[str, str, dict[str, np.ndarray]]] = {
    "arithmetic": (X, "y = Add(x, x) z = Mul(y, x) u = Sub(z, y) w = Abs(x) v = Div(u, w)", ROWS),
    "whole numbers": (X, "i = Cast <to = 7> (x) n = Constant <value_int = 2> () d = Div(i, n) v = Cast <to = 1> (d)",
                      {"x": 10 * normal(3, 6)}),
    "functions": (X, "a1 = Sigmoid(x) b1 = Tanh(a1) c1 = Erf(b1) d1 = Exp(c1) e1 = Sqrt(d1) f1 = Log(e1) "
                  "g1 = Cos(f1) h1 = Sin(g1) i1 = Reciprocal(h1) j1 = Pow(i1, g1) k1 = Floor(j1) v = Neg(j1)", ROWS),
    "gelu": (X, 'y = Gelu(x) z = Gelu <approximate = "tanh"> (x) v = Add(y, z)', ROWS),
    "softmax": (X, "y = Softmax <axis = 0> (x) z = Softmax(x) v = Add(y, z)", ROWS),
    "comparisons": (X, "y = Relu(x) b1 = Greater(x, y) c1 = Equal(x, y) d1 = Or(b1, c1) e1 = Not(d1) "
                    "f1 = IsNaN(x) g1 = Less(x, y) h1 = GreaterOrEqual(x, y) i1 = LessOrEqual(x, y) "
                    "j1 = And(h1, i1) k1 = Or(j1, f1) l1 = Or(k1, g1) m1 = And(l1, d1) v = Where(m1, x, y)", ROWS),
    "gemm": (f"{X}, float[5, 6] w, float[5] b", "v = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (x, w, b)",
             {**ROWS, "w": normal(5, 6), "b": normal(5)}),
    "turned gemm": ("float[6, a] x, float[6, 5] w", "v = Gemm <transA = 1> (x, w)",
                    {"x": normal(6, 3), "w": normal(6, 5)}),
    "norms": (f"{X}, float[6] w, float[6] b",
              "y = RMSNormalization <epsilon = 0.01> (x, w) v = LayerNormalization(y, w, b)",
              {**ROWS, "w": normal(6), "b": normal(6)}),
    "reductions": (X, "axes = Constant <value_ints = [1]> () y = ReduceSum <keepdims = 0> (x, axes) "
                   "z = ReduceMean(x) w = ReduceMax(x, axes) s = Add(w, z) v = Add(s, y)", ROWS),
    "no axes": (X, "v = ReduceSum <noop_with_empty_axes = 1> (x)", ROWS),
    "shapes": (X, "s = Shape(x) one = Constant <value_ints = [1]> () t = Concat <axis = 0> (s, one) "
               "y = Reshape(x, t) two = Constant <value_ints = [2]> () u = Squeeze(y, two) "
               "v = Transpose <perm = [1, 0]> (u)", ROWS),
    "turned about": (X, "v = Transpose(x)", ROWS),
    "zero and rest": (X, "s = Constant <value_ints = [0, 2, -1]> () y = Reshape(x, s) "
                      "v = Flatten <axis = 2> (y)", ROWS),
    "expand": (X, "at = Constant <value_ints = [0, 3]> () y = Unsqueeze(x, at) w = Transpose <perm = [0, 1, 3, 2]> (y) "
               "s = Constant <value_ints = [2, 1, 3, 5, 6]> () v = Expand(w, s)", ROWS),
    "slices": (X, "b = Constant <value_ints = [1, -3]> () e = Constant <value_ints = [99, -1]> () "
               "ax = Constant <value_ints = [0, 1]> () st = Constant <value_ints = [1, 2]> () "
               "v = Slice(x, b, e, ax, st)", ROWS),
    "gather": (f"{X}, int64[2, 2] i",
               "y = Gather <axis = 1> (x, i) last = Constant <value_int = -1> () v = Gather(y, last)",
               {**ROWS, "i": np.array([[0, -1], [5, -6]])}),
    "split": (X, "p, q, r = Split <axis = 1, num_outputs = 3> (x) parts = Constant <value_ints = [1, 5]> () "
              "s, t = Split <axis = 1> (x, parts) v = Concat <axis = 1> (t, r, q, p, s)", ROWS),
    "uneven split": (X, "p, q = Split <axis = 0, num_outputs = 2> (x) v = Concat <axis = 0> (q, p)", ROWS),
    "range": (X, "s = Shape <start = 1> (x) n = Squeeze(s) z = Constant <value_int = 0> () "
              "one = Constant <value_int = 1> () r = Range(z, n, one) f = Cast <to = 1> (r) v = Add(x, f)", ROWS),
    "clip": (X, "low = Constant <value_float = -0.5> () y = Clip(x, low) high = Constant <value_float = 0.25> () "
             "v = Clip(y, low, high)", ROWS),
    "constant of shape": (X, "s = Shape(x) y = ConstantOfShape <value = float[1] {2.5}> (s) v = Mul(x, y)", ROWS),
    "convolution": (f"{IMAGE}, float[6, 2, 3, 2] w, float[6] b",
                    "v = Conv <group = 2, strides = [2, 1], dilations = [1, 2], pads = [1, 1, 1, 1]> (x, w, b)",
                    {**PICTURE, "w": normal(6, 2, 3, 2), "b": normal(6)}),
    "uneven padding": (f"{IMAGE}, float[5, 4, 3, 3] w", "v = Conv <pads = [0, 2, 1, 0]> (x, w)",
                       {**PICTURE, "w": normal(5, 4, 3, 3)}),
    "pools": (IMAGE, "y = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (x) "
              "z = AveragePool <kernel_shape = [2, 2]> (y) v = GlobalAveragePool(z)", PICTURE),
    "attention": ("float[a, b, 8] x, float[a, c, 4] k, float[a, 1, b, c] m",
                  "v = Attention <q_num_heads = 4, kv_num_heads = 2, scale = 0.3> (x, k, k, m)",
                  {"x": normal(2, 3, 8), "k": normal(2, 5, 4), "m": normal(2, 1, 3, 5)}),
    "causal attention": ("float[a, 2, b, 4] x", "v = Attention <is_causal = 1> (x, x, x)", {"x": normal(2, 2, 5, 4)}),
}  # fmt: skip


def model(ends: str, body: str) -> ir.Model:
    text = f'<ir_version: 11, opset_import: ["" : 24]>\ng ({ends}) => (float[z] v) {{ {body} }}'
    proto = parser.parse_model(text)
    del proto.graph.output[0].type.tensor_type.shape.dim[:]  # its rank is what comes out
    return ir.from_proto(proto)


def operators(graph: Graph) -> set[str]:
    return {node.operator for node in graph.nodes}


@pytest.mark.parametrize("name", CASES)
def test_operators_are_onnxs(name: str) -> None:
    ends, body, inputs = CASES[name]
    made = model(ends, body)
    (wanted,) = ReferenceEvaluator(ir.to_proto(made)).run(None, inputs)
    found = walk(described(made), inputs, {"v": wanted.shape})
    np.testing.assert_allclose(found["v"], wanted, rtol=2e-5, atol=2e-6)


def test_every_operator_of_the_table_is_in_a_case() -> None:
    seen = set().union(*(operators(described(model(ends, body))) for ends, body, _ in CASES.values()))
    assert set(STANDARD) - seen == {
        "Identity",
        "MatMul",
        "QuantizeLinear",
        "DequantizeLinear",
    }  # in other tests


def test_codes_of_eight_bits() -> None:
    rows = torch.tensor([[0.5, -1.5, 2.5, 400.0], [-400.0, 0.024, 0.026, 1.0]])
    step, zero = torch.tensor(1.0), torch.tensor(0, dtype=torch.int8)
    codes = quantize(Node("QuantizeLinear", (), ()), rows, step, zero)
    assert codes.tolist() == [[0, -2, 2, 127], [-128, 0, 0, 1]]  # halves to even, then clipped
    by_row = quantize(
        Node("QuantizeLinear", (), (), {"axis": 0}), rows, torch.tensor([0.1, 0.05]), zero.expand(2)
    )
    assert by_row.tolist() == [[5, -15, 25, 127], [-128, 0, 1, 20]]
    unsigned = quantize(Node("QuantizeLinear", (), ()), rows, step, torch.tensor(3, dtype=torch.uint8))
    assert unsigned.tolist() == [[3, 1, 5, 255], [0, 3, 3, 4]]
    node = Node("DequantizeLinear", (), (), {"axis": 1, "output_dtype": 10})
    wide = dequantize(node, codes, torch.tensor([0.5, 1.0, 2.0, 3.0]))
    assert wide.dtype == torch.float16
    assert wide.tolist() == [[0.0, -2.0, 4.0, 381.0], [-64.0, 0.0, 0.0, 3.0]]


def test_codes_of_fp8_are_those_of_ml_dtypes() -> None:
    rows = RANDOM.normal(size=200).astype(np.float32) * 300
    zero = torch.zeros((), dtype=torch.float8_e4m3fn)
    codes = quantize(Node("QuantizeLinear", (), ()), torch.from_numpy(rows), torch.tensor(0.7), zero)
    wanted = np.clip(rows / np.float32(0.7), -448, 448).astype(ml_dtypes.float8_e4m3fn)
    assert codes.view(torch.uint8).tolist() == wanted.view(np.uint8).tolist()


def test_codes_in_blocks() -> None:
    codes = torch.arange(-4, 6, dtype=torch.int8).reshape(5, 2)
    scale = torch.tensor([[1.0, 10.0], [100.0, 1000.0]])
    node = Node("DequantizeLinear", (), (), {"axis": 0, "block_size": 3})
    found = dequantize(node, codes, scale, torch.ones(2, 2, dtype=torch.int8))
    assert found.tolist() == [[-5, -40], [-3, -20], [-1, 0], [100, 2000], [300, 4000]]


def test_codes_of_four_bits_are_read() -> None:
    made = model("int4[2, 2] w, float[2] x", "s = Constant <value = float[2] {0.5, 2.0}> () "
                 "d = DequantizeLinear <axis = 0> (w, s) v = Mul(d, x)")  # fmt: skip
    value = made.graph.inputs.pop(0)
    codes = np.array([[-8, 7], [1, -1]]).astype(ml_dtypes.int4)
    value.const_value = ir.tensor(codes, name="w")
    made.graph.register_initializer(value)
    stored = described(ir.from_proto(ir.to_proto(made)))
    found = walk(stored, {"x": np.array([1.0, 10.0], np.float32)}, {"v": (2, 2)})
    assert found["v"].tolist() == [[-4.0, 35.0], [2.0, -20.0]]


@pytest.mark.parametrize(
    ("ends", "body", "words"),
    [
        (X, "y = Selu(x) z = Hardmax(y) v = Abs(z)", "the graph holds Hardmax, Selu, which is not walked"),
        (f"{X}, int64[2] s", "v = Reshape(x, s)", "Reshape .* makes a shape of the numbers of input 's'"),
    ],
)
def test_what_is_not_walked_is_refused_at_loading(ends: str, body: str, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        WalkingEngine(described(model(ends, body)), CPU)


@pytest.mark.parametrize(
    ("ends", "body", "words"),
    [
        (X, "v = Cast <to = 14> (x)", "casts to ONNX's type 14"),
        (IMAGE, "v = MaxPool <kernel_shape = [3, 3], pads = [0, 0, 1, 1]> (x)", "pads its sides unequally"),
        (IMAGE, 'v = MaxPool <kernel_shape = [3, 3], auto_pad = "SAME_UPPER"> (x)', "computes its padding"),
        (
            "float[a, 2, b, 4] x",
            "v = Attention <softcap = 3.0> (x, x, x)",
            "caches, a softcap or more outputs",
        ),
    ],
)
def test_forms_that_are_not_walked_are_refused(ends: str, body: str, words: str) -> None:
    inputs = {IMAGE: PICTURE, X: ROWS}.get(ends, {"x": normal(1, 2, 3, 4)})
    with pytest.raises(BadInput, match=words):
        walk(described(model(ends, body)), inputs, {"v": (1,)})


def test_steps_backwards_are_refused() -> None:
    body = "b = Constant <value_ints = [-1]> () e = Constant <value_ints = [0]> () "
    body += "a = Constant <value_ints = [0]> () s = Constant <value_ints = [-1]> () v = Slice(x, b, e, a, s)"
    with pytest.raises(BadInput, match=r"steps by \[-1\]; only steps forward are walked"):
        walk(described(model("float[n] x", body)), {"x": normal(4)}, {"v": (1,)})
