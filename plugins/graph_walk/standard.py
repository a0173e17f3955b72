"""The standard operators of lowered graphs that compute on the device, each by torch.

An operator is a function of its node and of its inputs, None where one is absent; it gives its output, or several. What
they mean: https://onnx.ai/onnx/operators. Inputs that decide shapes come on the CPU (`placement.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from model_repo.runtime.errors import BadInput

from .convolutions import average_pool, convolution, global_average_pool, max_pool
from .description import DTYPES, Node
from .quantized import dequantize, quantize
from .shapes import (
    concat,
    constant_of_shape,
    expand,
    flatten,
    gather,
    indices_range,
    reshape,
    shape,
    slices,
    split,
    squeeze,
    transpose,
    unsqueeze,
)

Operator = Callable[..., Tensor | tuple[Tensor, ...]]

ONNX_TYPES = {
    **{1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "float16"},
    **{11: "float64", 16: "bfloat16", 17: "float8e4m3fn"},
}
"""Names of numbers of onnx.TensorProto.DataType."""


def _cast(node: Node, x: Tensor) -> Tensor:
    number = node.integer("to", 0)
    if number not in ONNX_TYPES:
        raise BadInput(f"{node.words} casts to ONNX's type {number}, which is not walked")
    return x.to(DTYPES[ONNX_TYPES[number]])


def _gemm(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a = a.mT if node.integer("transA", 0) else a
    b = b.mT if node.integer("transB", 0) else b
    product = a @ b
    alpha, beta = node.number("alpha", 1.0), node.number("beta", 1.0)
    product = product if alpha == 1.0 else product * alpha
    if c is None:
        return product
    return product + (c if beta == 1.0 else c * beta)


def _rms_normalization(node: Node, x: Tensor, weight: Tensor) -> Tensor:
    axis = node.integer("axis", -1)
    return functional.rms_norm(x, x.shape[axis:], weight, node.number("epsilon", 1e-5))


def _layer_normalization(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if len(node.outputs) > 1:
        raise BadInput(f"{node.words} also gives mean or deviation, which is not walked")
    axis = node.integer("axis", -1)
    return functional.layer_norm(x, x.shape[axis:], weight, bias, node.number("epsilon", 1e-5))


def _softmax(node: Node, x: Tensor) -> Tensor:
    return torch.softmax(x, node.integer("axis", -1))


def _gelu(node: Node, x: Tensor) -> Tensor:
    return functional.gelu(x, approximate=node.attributes.get("approximate", "none"))


def _clip(node: Node, x: Tensor, least: Tensor | None = None, most: Tensor | None = None) -> Tensor:
    bounds = [None if bound is None else bound.item() for bound in (least, most)]
    return torch.clamp(x, *bounds)


def _divide(node: Node, a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.dtype.is_floating_point else torch.div(a, b, rounding_mode="trunc")


def _reduced(reduce: Callable[..., Tensor]) -> Operator:
    """An operator whose axes are its second input, or an attribute in older opsets."""

    def body(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
        given = node.attributes.get("axes", []) if axes is None else axes.tolist()
        if not given and node.integer("noop_with_empty_axes", 0):
            return x
        over = tuple(given) or tuple(range(x.dim()))
        return reduce(x, dim=over, keepdim=bool(node.integer("keepdims", 1)))

    return body


def _attention(
    node: Node, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, *more: Tensor | None
) -> Tensor:
    """Operator Attention of opset 23 without caches: [batch, length, heads * size] or [batch, heads, length, size]."""
    if any(tensor is not None for tensor in more) or node.number("softcap", 0.0) or len(node.outputs) > 1:
        raise BadInput(f"{node.words} has caches, a softcap or more outputs, which are not walked")
    packed = query.dim() == 3
    heads = [node.integer(f"{name}_num_heads", 0) for name in ("q", "kv", "kv")]
    if packed:
        query, key, value = (
            x.reshape(*x.shape[:2], count, -1).transpose(1, 2)
            for x, count in zip((query, key, value), heads, strict=True)
        )
    scale = node.number("scale", 0.0) or None
    output = functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=bool(node.integer("is_causal", 0)),
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output.transpose(1, 2).flatten(2) if packed else output


def _elementwise(function: Callable[..., Tensor]) -> Operator:
    return lambda node, *inputs: function(*inputs)


def _identity(x: Tensor) -> Tensor:
    return x


_ELEMENTWISE: Mapping[str, Callable[..., Tensor]] = {
    "Abs": torch.abs,
    "Add": torch.add,
    "And": torch.logical_and,
    "Cos": torch.cos,
    "Equal": torch.eq,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Identity": _identity,
    "IsNaN": torch.isnan,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Log": torch.log,
    "MatMul": torch.matmul,
    "Mul": torch.mul,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Or": torch.logical_or,
    "Pow": torch.pow,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Sin": torch.sin,
    "Sqrt": torch.sqrt,
    "Sub": torch.sub,
    "Tanh": torch.tanh,
    "Where": torch.where,
}

STANDARD: Mapping[str, Operator] = {
    **{name: _elementwise(function) for name, function in _ELEMENTWISE.items()},
    "Attention": _attention,
    "AveragePool": average_pool,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": concat,
    "ConstantOfShape": constant_of_shape,
    "Conv": convolution,
    "DequantizeLinear": dequantize,
    "Div": _divide,
    "Expand": expand,
    "Flatten": flatten,
    "Gather": gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": global_average_pool,
    "LayerNormalization": _layer_normalization,
    "MaxPool": max_pool,
    "QuantizeLinear": quantize,
    "RMSNormalization": _rms_normalization,
    "Range": indices_range,
    "ReduceMax": _reduced(torch.amax),
    "ReduceMean": _reduced(torch.mean),
    "ReduceSum": _reduced(torch.sum),
    "Reshape": reshape,
    "Shape": shape,
    "Slice": slices,
    "Softmax": _softmax,
    "Split": split,
    "Squeeze": squeeze,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}
"""By ONNX's name."""
