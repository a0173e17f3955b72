"""The plugins' nodes: by our kernels where the tensors lie, or in float32 as the references say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from model_repo.runtime.errors import BadInput
from plugins.cuda.library import Library, aligned_workspace
from plugins.reference.flash_attention import flash_attention
from plugins.reference.kv_write import Rotary, StaticScales, kv_write
from plugins.reference.paged_attention import attend_pools
from plugins.tensorrt import names
from plugins.tensorrt.python_plugin import FORMS

from .description import Node

_OF_THE_PARSER = frozenset({names.INPUTS, names.PLUGIN_VERSION, names.PLUGIN_NAMESPACE})
_POOLS = ("key_cache", "value_cache")

Plugin = Callable[[Sequence[Tensor]], tuple[Tensor, ...]]
"""From a node's inputs to its outputs; pools are written where they lie, and are outputs too."""


def input_names(node: Node) -> list[str]:
    """The kernel's names of a plugin's inputs. Raises BadInput where the node does not say them."""
    given = node.attributes.get(names.INPUTS)
    if not given:
        raise BadInput(f"plugin {node.words} has no attribute {names.INPUTS!r}, the names of its inputs")
    return str(given).split(",")


def written_in_place(node: Node) -> dict[str, str]:
    """Outputs of a plugin's node that lie where an input lies: output to input, by the graph's names."""
    if node.operator != names.PAGED_ATTENTION:
        return {}
    given = dict(zip(input_names(node), node.inputs, strict=True))
    return dict(zip(node.outputs[1:], (given[name] for name in _POOLS), strict=True))


def by_kernel(node: Node, kernels: Library, stream: Callable[[], int]) -> Plugin:
    """The plugin by its kernel, called as TensorRT would call it. stream: gives the cudaStream_t to queue on.

    Raises BadInput for inputs and attributes that the kernel has not.
    """
    given = {name: value for name, value in node.attributes.items() if name not in _OF_THE_PARSER}
    form = FORMS[node.operator](kernels, input_names(node), given)

    def run(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        tensors = [tensor.contiguous() for tensor in inputs]
        by_name = dict(zip(form.inputs, tensors, strict=True))
        kinds = form.output_types([tensor.dtype for tensor in tensors])
        outputs = []
        for place, name in enumerate(form.outputs):
            if name in form.in_place:
                outputs.append(by_name[name])
                continue
            sizes = [
                (by_name[extent.tensor].shape[extent.axis] if extent.tensor else 1)
                * extent.factor
                // extent.divisor
                for extent in form.extents(place)
            ]
            outputs.append(torch.empty(sizes, dtype=kinds[place], device=tensors[0].device))
        order = [*tensors, *outputs]
        dtypes, shapes = [tensor.dtype for tensor in order], [tensor.shape for tensor in order]
        workspace = aligned_workspace(form.workspace_bytes(dtypes, shapes), tensors[0].device)
        address = workspace.data_ptr() if workspace.numel() else 0
        form.enqueue(dtypes, shapes, [tensor.data_ptr() for tensor in order], address, stream())
        return tuple(outputs)

    return run


def by_reference(node: Node) -> Plugin:
    """The plugin on the CPU as its reference defines it. Raises BadInput for Int4Gemm, whose weights are packed."""
    if node.operator not in _REFERENCES:
        raise BadInput(f"plugin {node.words} is walked by its kernel only; give a library of kernels")
    body, given = _REFERENCES[node.operator], input_names(node)

    def run(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return body(node, dict(zip(given, inputs, strict=True)))

    return run


def _heads(node: Node, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value as [tokens, heads, size], from one tensor or three."""
    heads, kv_heads = node.integer("num_heads", 1), node.integer("kv_num_heads", 1)
    rows = tensors["query"]
    if "key" in tensors:
        parts = (rows, tensors["key"], tensors["value"])
    else:
        width = rows.shape[1] // (heads + 2 * kv_heads)
        first, second, third = torch.split_with_sizes(
            rows, [heads * width, kv_heads * width, kv_heads * width], 1
        )
        parts = (first, second, third)
    query, key, value = parts
    return (
        query.reshape(len(query), heads, -1),
        key.reshape(len(key), kv_heads, -1),
        value.reshape(len(value), kv_heads, -1),
    )


def _paged_attention(node: Node, tensors: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    query, key, value = _heads(node, tensors)
    scales = (
        StaticScales(tensors["k_scale"].float(), tensors["v_scale"].float()) if "k_scale" in tensors else None
    )
    rotary = None
    if node.integer("do_rotary", 0):
        interleaved = bool(node.integer("rotary_interleaved", 0))
        rotary = Rotary(tensors["cos_cache"], tensors["sin_cache"], interleaved)
    key_pool, value_pool = (tensors[name] for name in _POOLS)
    starts = tensors["cumulative_sequence_length"]
    written = kv_write(
        key,
        value,
        key_pool,
        value_pool,
        tensors["slot_mapping"],
        cu_seqlens=starts,
        position_ids=tensors.get("position_ids"),
        rotary=rotary,
        scales=scales,
        key_norm_weight=tensors.get("k_norm_weight"),
        query_norm_weight=tensors.get("q_norm_weight"),
        epsilon=node.number("norm_epsilon", 1e-6),
        query=query,
    )
    for pool, new in ((key_pool, written.key_cache), (value_pool, written.value_cache)):
        pool.view(torch.uint8).copy_(new.view(torch.uint8))
    assert written.query is not None
    attended = attend_pools(
        written.query,
        key_pool,
        value_pool,
        starts,
        tensors["past_seqlens"],
        tensors["block_table"],
        key_scale=scales.key if scales else None,
        value_scale=scales.value if scales else None,
        head_sink=tensors.get("head_sink"),
        alibi_slopes=tensors.get("alibi_slopes"),
        scale=node.number("scale", 0.0),
        softcap=node.number("softcap", 0.0),
        local_window_size=node.integer("local_window_size", -1),
    )
    return attended.output.to(query.dtype).flatten(1), key_pool, value_pool


def _flash_attention(node: Node, tensors: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    optional = ("alibi_slopes", "bias", "head_sink", "query_scale", "key_scale", "value_scale")
    given: dict[str, Any] = {name: tensors[name] for name in optional if name in tensors}
    output, _ = flash_attention(
        *_heads(node, tensors),
        tensors["cu_seqlens_q"],
        tensors["cu_seqlens_k"],
        **given,
        scale=node.number("scale", 0.0),
        softcap=node.number("softcap", 0.0),
        causal=bool(node.integer("causal", 0)),
        window_left=node.integer("window_left", -1),
        window_right=node.integer("window_right", -1),
    )
    return (output.flatten(1),)


_REFERENCES: Mapping[str, Callable[[Node, Mapping[str, Tensor]], tuple[Tensor, ...]]] = {
    names.PAGED_ATTENTION: _paged_attention,
    names.FLASH_ATTENTION: _flash_attention,
}
