"""Looks at a quantized graph and compares it with what was to be quantized."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import onnx_ir as ir

from model_repo.runtime.errors import SlipwayError
from plugins.schemas import DOMAIN, EXPERT_LINEAR, FAKE_QUANTIZE_TOKENS

from .precisions import LayerSchemes

_PRODUCTS = frozenset((("", "MatMul"), ("", "Gemm"), ("", "Conv"), (DOMAIN, EXPERT_LINEAR.name)))

if TYPE_CHECKING:
    from .write import Written


def verify(model: ir.Model, written: Written) -> None:
    """Raises SlipwayError, with the node, unless every product is quantized as meant and nothing else is."""
    problems = [*_products(model, written.products), *_strays(model)]
    if problems:
        raise SlipwayError("the quantized graph is not as planned: " + "; ".join(problems[:5]))


def _products(model: ir.Model, wanted: Mapping[str, LayerSchemes]) -> list[str]:
    problems, seen = [], set()
    for node in model.graph:
        if (node.domain, node.op_type) not in _PRODUCTS:
            continue
        name = node.name or ""
        layer = wanted.get(name)
        weight = _is_dequantized(node.inputs[1] if len(node.inputs) > 1 else None, constant=True)
        activation = _is_rounded(node.inputs[0])
        seen.add(name)
        if layer is None and (weight or activation):
            problems.append(f"{name} was not to be quantized")
        if layer is not None and not weight:
            problems.append(f"the weight of {name} is not quantized")
        if layer is not None and activation != (layer.activation is not None):
            problems.append(f"{name} is half quantized: weight {layer.weight}, activation {layer.activation}")
    problems += [f"{name} is gone" for name in wanted if name not in seen]
    return problems


def _strays(model: ir.Model) -> list[str]:
    """Quantized values that feed something other than products and tables: rounding that pays for nothing."""
    problems = []
    for node in model.graph:
        if not (_is_dequantized(node.outputs[0]) or _is_fake(node)):
            continue
        for reader, place in node.outputs[0].uses():
            product = (reader.domain, reader.op_type) in _PRODUCTS
            fits = (product and place < 2) or (reader.op_type == "Gather" and place == 0)
            if not fits:
                problems.append(f"{reader.op_type} {reader.name} reads the quantized {node.outputs[0].name}")
    return problems


def _is_fake(node: ir.Node) -> bool:
    return node.domain == DOMAIN and node.op_type == FAKE_QUANTIZE_TOKENS.name


def _is_dequantized(value: ir.Value | None, constant: bool = False) -> bool:
    node = None if value is None else value.producer()
    if node is None or node.op_type != "DequantizeLinear" or node.domain != "":
        return False
    return not constant or (node.inputs[0] is not None and node.inputs[0].const_value is not None)


def _is_rounded(value: ir.Value | None) -> bool:
    node = None if value is None else value.producer()
    return node is not None and (_is_fake(node) or _is_dequantized(value))
