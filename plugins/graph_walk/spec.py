"""What the runtime has to know of a described decoder, read off its graph."""

from __future__ import annotations

from dataclasses import replace

from model_repo.runtime.contract import LOGITS, EngineSpec, KVSpec, Limits, key_cache, value_cache
from model_repo.runtime.errors import BadInput
from plugins.tensorrt import names

from .description import End, Graph
from .engine import Ranges, Shape
from .plugins import input_names

FEW = Limits(max_batch=8, token_budget=32, max_length=64, block_size=16, num_blocks=64)
"""Limits for tests and dry runs."""


def positions(graph: Graph, most: int) -> int:
    """The longest sequence that the rotary tables of `graph` have rows for, at most `most`."""
    found = most
    for node in graph.nodes:
        if node.operator == names.PAGED_ATTENTION:
            given = dict(zip(input_names(node), node.inputs, strict=True))
            if "cos_cache" in given:
                found = min(found, graph.weights[given["cos_cache"]].shape[0])
    return found


def decoder_spec(graph: Graph, limits: Limits, name: str = "walk") -> EngineSpec:
    """The spec of a decoder with the paged plugin. Raises BadInput for graphs of other models."""
    ends = {end.name: end for end in (*graph.inputs, *graph.outputs)}
    windows = [
        max(0, node.integer("local_window_size", -1))
        for node in graph.nodes
        if node.operator == names.PAGED_ATTENTION
    ]
    if LOGITS.name not in ends or not windows:
        raise BadInput(
            f"the graph has no {LOGITS.name} or no attention by the plugin; it has {', '.join(ends)}"
        )
    layers = sum(name.startswith(key_cache(0)[:-1]) and ends[name] in graph.inputs for name in ends)
    specs = []
    for layer in range(layers):
        key, value = ends[key_cache(layer)], ends[value_cache(layer)]
        window = windows[layer] if len(windows) == layers else 0
        specs.append(KVSpec(0, _size(key, 2), _size(key, 3), _size(value, 3), window, _kv_dtype(key)))
    length = positions(graph, limits.max_length)
    vocab = _size(ends[LOGITS.name], 1)
    return EngineSpec(
        "decoder",
        name,
        "tensorrt",
        "fp16",
        "graph.json",
        None,
        vocab,
        length,
        kv=tuple(specs),
        limits=replace(limits, max_length=length),
    )


def profiles(graph: Graph, limits: Limits) -> dict[str, Ranges]:
    """The profiles that a built engine has (`pipeline.targets.tensorrt.profiles.paged_profiles`)."""
    width, chunk = limits.max_blocks, min(limits.token_budget, limits.max_length)
    most = limits.max_batch

    def ranges(sequences: int, tokens: int) -> Ranges:
        largest = {
            "tokens": tokens,
            "batch": sequences,
            "selected": sequences,
            "batch + 1": sequences + 1,
            "max_blocks": width,
            "num_blocks": limits.num_blocks,
            "block_size": limits.block_size,
        }
        least = dict.fromkeys(largest, 1) | {"batch + 1": 2, "block_size": limits.block_size}

        def shape(end: End, sizes: dict[str, int]) -> Shape:
            return tuple(size if isinstance(size, int) else sizes[size] for size in end.shape)

        return {end.name: (shape(end, least), shape(end, largest)) for end in graph.inputs}

    return {
        "decode": ranges(most, most),
        "prefill": ranges(1, chunk),
        "mixed": ranges(most, max(most, limits.token_budget)),
    }


def _size(end: End, axis: int) -> int:
    size = end.shape[axis]
    if not isinstance(size, int):
        raise BadInput(f"{end.name!r} of the graph has the size {size!r}; a number is needed")
    return size


def _kv_dtype(end: End) -> str:
    return {"float8e4m3fn": "fp8"}.get(end.dtype, end.dtype)
