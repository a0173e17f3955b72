"""A decoder of several layers as the fuse stage writes one: norms, packed projections, paged attention, gated MLP."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from model_repo.runtime.contract import KVSpec
from pipeline.graph import save_graph
from plugins.schemas import DOMAIN

from .small_graphs import Facts

HEADS, DIM, WIDTH, INNER, VOCABULARY = 2, 16, 32, 48, 61
CAUSES = 5
"""Embeddings are mixtures of so many vectors, and a little noise: activations are correlated."""
STEP_INPUTS = ("input_ids", "position_ids", "cu_seqlens", "past_lens", "slot_mapping", "logits_indices")


def facts(layers: int) -> Facts:
    return Facts("decoder", kv=(KVSpec(0, HEADS, DIM, DIM, 0, "float32"),) * layers)


def sequences(count: int = 12, seed: int = 5) -> list[list[int]]:
    draw = np.random.default_rng(seed)
    return [draw.integers(0, VOCABULARY, length).tolist() for length in draw.integers(5, 40, count)]


class Builder:
    """Nodes and weights of a graph under construction."""

    def __init__(self, seed: int) -> None:
        self.draw = np.random.default_rng(seed)
        self.nodes: list[ir.Node] = []
        self.weights: list[ir.Value] = []

    def weight(self, name: str, *shape: int, around: float = 0.0, size: float | None = None) -> ir.Value:
        spread = shape[0] ** -0.5 if size is None else size
        array = (around + spread * self.draw.standard_normal(shape)).astype(np.float32)
        value = ir.Value(
            name=name,
            const_value=ir.tensor(array, name=name),
            type=ir.TensorType(ir.DataType.FLOAT),
            shape=ir.Shape(shape),
        )
        self.weights.append(value)
        return value

    def node(
        self, kind: str, inputs: list[ir.Value | None], *names: str, domain: str = "", **attributes: object
    ) -> list[ir.Value]:
        outputs = [ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT)) for name in names]
        self.nodes.append(ir.node(kind, inputs, attributes, domain=domain, outputs=outputs))
        return outputs


def write_layers(folder: Path, layers: int = 2, seed: int = 1) -> Path:
    """The graph file. Some channels of the norms' gains are ten times as large, as those of trained models."""
    build = Builder(seed)
    inputs = {name: _value(name, ir.DataType.INT32, [name]) for name in STEP_INPUTS}
    inputs["block_table"] = _value("block_table", ir.DataType.INT32, ["batch", "blocks"])
    embedding = build.weight("embedding", VOCABULARY, WIDTH, size=0.3)
    causes = build.draw.standard_normal((VOCABULARY, CAUSES)) @ build.draw.standard_normal((CAUSES, WIDTH))
    _add(embedding, causes)
    (stream,) = build.node("Gather", [embedding, inputs["input_ids"]], "embedded")
    pools, delta = [], None
    for layer in range(layers):
        stream, normed = _norm(build, f"{layer}.first", stream, delta)
        (packed,) = build.node(
            "MatMul", [normed, build.weight(f"{layer}.qkv", WIDTH, 3 * HEADS * DIM)], f"{layer}.packed"
        )
        caches = [
            _value(f"{kind}_cache_{layer}", ir.DataType.FLOAT, ["num_blocks", "block_size", HEADS, DIM])
            for kind in ("key", "value")
        ]
        inputs |= {cache.name or "": cache for cache in caches}
        step = [inputs[name] for name in ("cu_seqlens", "past_lens", "block_table")]
        attended, *written = build.node(
            "PagedAttention",
            [packed, None, None, *caches, *step, None, None, inputs["slot_mapping"]],
            f"{layer}.attended",
            f"key_cache_out_{layer}",
            f"value_cache_out_{layer}",
            domain=DOMAIN,
            num_heads=HEADS,
            kv_num_heads=HEADS,
        )
        pools += written
        (delta,) = build.node(
            "MatMul", [attended, build.weight(f"{layer}.out", HEADS * DIM, WIDTH)], f"{layer}.mixed"
        )
        stream, normed = _norm(build, f"{layer}.second", stream, delta)
        (both,) = build.node(
            "MatMul", [normed, build.weight(f"{layer}.gate_up", WIDTH, 2 * INNER)], f"{layer}.both"
        )
        (gated,) = build.node("SwiGLU", [both], f"{layer}.gated", domain=DOMAIN)
        (delta,) = build.node(
            "MatMul", [gated, build.weight(f"{layer}.down", INNER, WIDTH)], f"{layer}.added"
        )
    _, normed = _norm(build, "last", stream, delta)
    (rows,) = build.node("Gather", [normed, inputs["logits_indices"]], "selected", axis=0)
    (logits,) = build.node("Gemm", [rows, build.weight("head", VOCABULARY, WIDTH)], "logits", transB=1)
    logits.shape = ir.Shape(["rows", VOCABULARY])
    for pool in pools:
        pool.shape = ir.Shape(["num_blocks", "block_size", HEADS, DIM])
    graph = ir.Graph(
        list(inputs.values()),
        [logits, *pools],
        nodes=build.nodes,
        initializers=build.weights,
        opset_imports={"": 23, DOMAIN: 1},
    )
    folder.mkdir(parents=True, exist_ok=True)
    return save_graph(ir.Model(graph, ir_version=10), folder / "fuse.onnx").graph


def _norm(build: Builder, name: str, stream: ir.Value, delta: ir.Value | None) -> tuple[ir.Value, ir.Value]:
    """The residual stream, and what its norm gives."""
    gain = build.weight(f"{name}.gain", WIDTH, around=1.0, size=0.2)
    _add(gain, np.where(np.arange(WIDTH) % 8 == 0, 10.0, 0.0))
    if delta is None:
        (normed,) = build.node("RMSNormalization", [stream, gain], f"{name}.normed", epsilon=1e-5)
        return stream, normed
    normed, total = build.node(
        "SkipRMSNormalization",
        [stream, delta, gain],
        f"{name}.normed",
        f"{name}.sum",
        domain=DOMAIN,
        epsilon=1e-5,
    )
    return total, normed


def _add(weight: ir.Value, more: np.ndarray) -> None:
    assert weight.const_value is not None
    weight.const_value = ir.tensor((weight.const_value.numpy() + more).astype(np.float32), name=weight.name)


def _value(name: str, kind: ir.DataType, shape: list[str | int]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(kind), shape=ir.Shape(shape))
