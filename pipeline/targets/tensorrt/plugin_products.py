"""Products with weights of four bits as Slipway's plugin Int4Gemm, in the place of DequantizeLinear and a product.

Both forms compute the same numbers. The plugin reads packed codes, once for every 32 rows: it is made for decode steps,
and for those of large batches or prefill the builder's own fusion may well be faster.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes

from pipeline.fuse.matching import add_weight, dims
from plugins.tensorrt import names
from plugins.weight_layout import GROUPS, SYMMETRIC_ZERO, PackedWeight, pack

_K_MULTIPLE = 8
"""Of the product's inputs, as the kernel wants them."""


class _Weight(NamedTuple):
    """codes int8 [k, n] of -8 to 7, scales [groups, n] in the network's 16-bit type, k that share a scale."""

    codes: npt.NDArray[np.int8]
    scales: npt.NDArray[Any]
    group: int
    origin: ir.Value


def products_to_plugins(model: ir.Model) -> int:
    """Rewrites the products of a lowered graph in place, and gives how many.

    Those stay whose rows lie along more than one axis, whose weight somebody else reads too, or whose weight is not
    what the kernel takes: symmetric codes in blocks of 32, 64 or 128 along k, and k a multiple of 8.
    """
    done = 0
    for node in list(model.graph):
        weight = _weight(node)
        rows = dims(node.inputs[0]) if node.inputs else None
        if weight is None or rows is None or len(rows) != 2:
            continue
        _replace(model.graph, node, weight)
        done += 1
    if done:
        model.opset_imports[names.DOMAIN] = 1
        passes.RemoveUnusedNodesPass()(model)
    return done


def _weight(node: ir.Node) -> _Weight | None:
    """The weight of a product that the plugin takes."""
    if node.domain != "" or node.op_type not in ("MatMul", "Gemm"):
        return None
    plain = {"alpha": 1.0, "beta": 1.0}
    if any(node.attributes.get_float(name, value) != value for name, value in plain.items()):
        return None
    if node.attributes.get_int("transA", 0):
        return None
    value, turned = node.inputs[1], bool(node.attributes.get_int("transB", 0))
    made = _only_reader(value)
    if (
        made is not None
        and made.op_type == "Transpose"
        and made.attributes.get_ints("perm", [1, 0]) == [1, 0]
    ):
        turned, made = not turned, _only_reader(made.inputs[0])
    if made is None or made.op_type != "DequantizeLinear" or len(made.inputs) > 2:
        return None
    codes, scales = made.inputs
    group, axis = made.attributes.get_int("block_size", 0), made.attributes.get_int("axis", 1)
    if codes is None or scales is None or codes.const_value is None or scales.const_value is None:
        return None
    if codes.dtype != ir.DataType.INT4 or group not in GROUPS or axis % 2 != (1 if turned else 0):
        return None
    stored, steps = codes.const_value.numpy().astype(np.int8), scales.const_value.numpy()
    if turned:
        stored, steps = stored.T, steps.T
    return _Weight(stored, steps, group, codes) if stored.shape[0] % _K_MULTIPLE == 0 else None


def _only_reader(value: ir.Value | None) -> ir.Node | None:
    """What makes `value`, where nobody else reads it."""
    if value is None or len(tuple(value.uses())) != 1 or value.is_graph_output():
        return None
    return value.producer()


def _replace(graph: ir.Graph, node: ir.Node, weight: _Weight) -> None:
    rows, bias = node.inputs[0], node.inputs[2] if len(node.inputs) > 2 else None
    assert rows is not None
    packed = _packed(weight)
    assert packed.scale is not None
    name, made_of = weight.origin.name or "weight", weight.origin
    inputs = {
        "x": rows,
        "weight": _constant(graph, f"{name}.packed", packed.weight.view(torch.int8).numpy(), made_of),
        "scale": _constant(graph, f"{name}.packed_scale", _as_numpy(packed.scale, weight.scales.dtype), None),
    }
    if bias is not None:
        inputs["bias"] = bias
    old = node.outputs[0]
    made = ir.node(
        names.INT4_GEMM,
        list(inputs.values()),
        {
            "columns": packed.n,
            "group": packed.group,
            names.INPUTS: ",".join(inputs),
            names.PLUGIN_VERSION: names.VERSION,
            names.PLUGIN_NAMESPACE: names.NAMESPACE,
        },
        domain=names.DOMAIN,
        outputs=[ir.Value(name=old.name, type=old.type, shape=old.shape)],
        name=node.name,
        metadata_props=dict(node.metadata_props),
    )
    graph.insert_before(node, made)
    old.replace_all_uses_with(made.outputs[0], replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _packed(weight: _Weight) -> PackedWeight:
    kind = torch.float16 if weight.scales.dtype == np.float16 else torch.bfloat16
    return pack(
        torch.from_numpy((weight.codes + np.int8(SYMMETRIC_ZERO)).astype(np.uint8)),
        group=weight.group,
        scale=torch.from_numpy(weight.scales.astype(np.float32)).to(kind),
    )


def _as_numpy(tensor: torch.Tensor, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    return tensor.float().numpy().astype(dtype)


def _constant(graph: ir.Graph, name: str, array: npt.NDArray[Any], origin: ir.Value | None) -> ir.Value:
    return add_weight(graph, ir.tensor(np.asarray(array, order="C"), name=name), name, origin)
