"""The packed decoder graph with the paged plugin as its attention: the same contract as on a CPU, in 16 bit.

Each `slipway::PagedAttention` becomes a node that TensorRT's parser takes for the plugin of plugins/tensorrt: absent
inputs are left out, and the attribute `input_names` names those that are there. Its pools are inputs and outputs of the
engine, of the 16-bit type, int8 or E4M3, to be bound to one address each. All else becomes standard operators.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common as passes

from model_repo.runtime.errors import BadInput
from pipeline.precision.convert import convert
from pipeline.precision.plan import TYPES, Precision
from pipeline.targets.native.precision import fitting_plan
from pipeline.targets.native.standard import write_out
from pipeline.targets.native.step_inputs import check_step_inputs
from pipeline.targets.native.wanted_rows import choose_rows_early
from plugins.schemas import DOMAIN, PAGED_ATTENTION
from plugins.tensorrt import names

MULTIPROCESSORS = {"7.5": 72, "8.0": 108, "8.6": 84, "8.9": 142, "9.0": 132, "10.0": 148, "12.0": 188}
"""Of the largest GPU of a compute capability."""

_NARROW = frozenset({"query", "key", "value", "head_sink", "q_norm_weight", "k_norm_weight"})
_POOLS = frozenset({"key_cache", "value_cache"})


def attention_workers(compute_capabilities: Sequence[str] = ()) -> int:
    """Blocks that attention runs as in an engine for these chips; for any chip where none, or an unknown one, is named.

    Two for each multiprocessor of the largest one: more than a chip can hold at a time cost it little, and the number
    decides the engine's workspace, which is fixed where it is built, perhaps without a GPU.
    """
    largest = max(MULTIPROCESSORS.values())
    return 2 * max((MULTIPROCESSORS.get(name, largest) for name in compute_capabilities), default=largest)


def lower_to_plugins(
    model: ir.Model, precision: Precision, keep: Collection[str] = (), workers: int | None = None
) -> None:
    """Rewrites a fused, perhaps quantized, decoder graph in place, as the module says.

    Pools of float32 become 16-bit ones; those that quantization made int8 or E4M3 stay. keep: names of nodes that stay
    in float32. workers: see `attention_workers`, its default for any chip. Logits stay float32. Raises BadInput for
    features of attention that the kernel does not have, other operators that TensorRT has not, and weights that do not
    fit the 16-bit type.
    """
    attention = [n for n in model.graph if n.domain == DOMAIN and n.op_type == PAGED_ATTENTION.name]
    check_step_inputs(model, "TensorRT")
    for node in attention:
        _check(node)
    write_out(model, keep=frozenset({PAGED_ATTENTION.name}))
    chosen = attention_workers() if workers is None else workers
    plugins = [_plugin_node(model.graph, node, chosen) for node in attention]
    model.opset_imports.pop(DOMAIN, None)
    model.opset_imports[names.DOMAIN] = 1
    passes.ShapeInferencePass()(model)
    choose_rows_early(model)
    _narrow(model, plugins, precision, keep)


def _check(node: ir.Node) -> None:
    """Raises BadInput for what the kernel cannot do."""
    given = [
        p.name for p, value in zip(PAGED_ATTENTION.inputs, node.inputs, strict=False) if value is not None
    ]
    unknown = [name for name in given if name not in names.PAGED_ATTENTION_INPUTS]
    if unknown:
        raise BadInput(
            f"attention node {node.name!r} uses {', '.join(unknown)}, which the CUDA kernel of paged attention lacks; "
            "build for target 'onnxruntime'"
        )


def _plugin_node(graph: ir.Graph, node: ir.Node, workers: int) -> ir.Node:
    """`node` as the plugin, in its place. Its outputs are the pools too, which the graph gives out already."""
    given = {p.name: v for p, v in zip(PAGED_ATTENTION.inputs, node.inputs, strict=False) if v is not None}
    attributes: dict[str, Any] = {name: attribute.value for name, attribute in node.attributes.items()}
    attributes |= {
        "workers": workers,
        names.INPUTS: ",".join(given),
        names.PLUGIN_VERSION: names.VERSION,
        names.PLUGIN_NAMESPACE: names.NAMESPACE,
    }
    made = ir.node(
        names.PAGED_ATTENTION,
        list(given.values()),
        attributes,
        domain=names.DOMAIN,
        outputs=[ir.Value(name=value.name, type=value.type, shape=value.shape) for value in node.outputs],
        name=node.name,
        metadata_props=dict(node.metadata_props),
    )
    graph.insert_before(node, made)
    for old, new in zip(node.outputs, made.outputs, strict=True):
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    return made


def _narrow(model: ir.Model, plugins: Sequence[ir.Node], precision: Precision, keep: Collection[str]) -> None:
    """Everything in 16 bit that may be, the plugins' activations and pools with it; rotary tables stay float32."""
    narrow = ir.TensorType(TYPES[precision])
    planned = fitting_plan(model, precision, keep)
    inputs, values = dict(planned.inputs), set(planned.values)
    for node in plugins:
        given = node.attributes[names.INPUTS].as_string().split(",")
        for value in (*node.inputs, *node.outputs):
            if value is not None and _is_pool(value, node, given) and value.dtype == ir.DataType.FLOAT:
                value.type = narrow
        inputs[node] = frozenset(place for place, name in enumerate(given) if name in _NARROW | _POOLS)
        values.add(node.outputs[0])
    convert(model, dataclasses.replace(planned, inputs=inputs, values=frozenset(values)))


def _is_pool(value: ir.Value, node: ir.Node, given: Sequence[str]) -> bool:
    if value in node.outputs[1:]:
        return True
    return any(value is node.inputs[place] for place, name in enumerate(given) if name in _POOLS)
