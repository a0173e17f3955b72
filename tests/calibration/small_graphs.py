"""Small graphs with known inner tensors, written as the fuse stage writes them: weights beside the graph."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from model_repo.runtime.contract import KVSpec, TensorSpec
from pipeline.graph import save_graph
from plugins.schemas import DOMAIN


class Facts(NamedTuple):
    """A `calibration.batches.Model`."""

    kind: str
    kv: tuple[KVSpec, ...] = ()
    inputs: tuple[TensorSpec, ...] = ()
    batched: bool = True


HEADS, DIM, WIDTH, VOCABULARY = 2, 4, 8, 11
DECODER = Facts("decoder", kv=(KVSpec(0, HEADS, DIM, DIM, 0, "float32"),))
TENSORS = Facts("tensors", inputs=(TensorSpec("x", "float32", ("batch", 6)),))


def write_mlp(folder: Path, seed: int = 3) -> tuple[Path, dict[str, np.ndarray]]:
    """x [batch, 6] @ w1 -> hidden [batch, 300] -> relu -> act @ w2 -> y [batch, 5]. Gives the graph and the weights."""
    draw = np.random.default_rng(seed)
    weights = {
        "w1": draw.standard_normal((6, 300), dtype=np.float32),
        "w2": draw.standard_normal((300, 5), dtype=np.float32),
    }
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["batch", 6]))
    values = {name: _weight(name, array) for name, array in weights.items()}
    nodes = [
        ir.node("MatMul", [x, values["w1"]], outputs=[ir.Value(name="hidden")]),
    ]
    nodes.append(ir.node("Relu", nodes[0].outputs, outputs=[ir.Value(name="act")]))
    y = ir.Value(name="y", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["batch", 5]))
    nodes.append(ir.node("MatMul", [nodes[1].outputs[0], values["w2"]], outputs=[y]))
    return _save(folder, [x], [y], nodes, values), weights


def write_decoder(folder: Path, seed: int = 4) -> tuple[Path, dict[str, np.ndarray]]:
    """One layer: embedding -> packed query, key, value -> paged attention -> head. Gives the graph and the weights."""
    draw = np.random.default_rng(seed)
    weights = {
        "embedding": draw.standard_normal((VOCABULARY, WIDTH), dtype=np.float32),
        "qkv": draw.standard_normal((WIDTH, 3 * HEADS * DIM), dtype=np.float32),
        "head": draw.standard_normal((HEADS * DIM, VOCABULARY), dtype=np.float32),
    }
    values = {name: _weight(name, array) for name, array in weights.items()}
    names = ("input_ids", "position_ids", "cu_seqlens", "past_lens", "slot_mapping", "logits_indices")
    inputs = {name: _int(name, [name]) for name in names}
    inputs["block_table"] = _int("block_table", ["batch", "blocks"])
    for name in ("key_cache_0", "value_cache_0"):
        shape = ir.Shape(["num_blocks", "block_size", HEADS, DIM])
        inputs[name] = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=shape)
    embed = ir.node("Gather", [values["embedding"], inputs["input_ids"]], outputs=[ir.Value(name="embedded")])
    qkv = ir.node("MatMul", [embed.outputs[0], values["qkv"]], outputs=[ir.Value(name="packed")])
    attention = ir.node(
        "PagedAttention",
        [
            qkv.outputs[0],
            None,
            None,
            inputs["key_cache_0"],
            inputs["value_cache_0"],
            inputs["cu_seqlens"],
            inputs["past_lens"],
            inputs["block_table"],
            None,
            None,
            inputs["slot_mapping"],
        ],
        {"num_heads": HEADS, "kv_num_heads": HEADS},
        domain=DOMAIN,
        outputs=[
            ir.Value(name="attended", type=ir.TensorType(ir.DataType.FLOAT)),
            ir.Value(name="key_cache_out_0", type=ir.TensorType(ir.DataType.FLOAT)),
            ir.Value(name="value_cache_out_0", type=ir.TensorType(ir.DataType.FLOAT)),
        ],
    )
    rows = ir.node(
        "Gather", [attention.outputs[0], inputs["logits_indices"]], outputs=[ir.Value(name="selected")]
    )
    logits = ir.Value(
        name="logits", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["rows", VOCABULARY])
    )
    head = ir.node("MatMul", [rows.outputs[0], values["head"]], outputs=[logits])
    outputs = [logits, *attention.outputs[1:]]
    return _save(folder, list(inputs.values()), outputs, [embed, qkv, attention, rows, head], values), weights


def write_encoder(folder: Path, seed: int = 6) -> tuple[Path, np.ndarray]:
    """input_ids [batch, length] -> mean of the tokens' rows -> embedding [batch, WIDTH]. Gives graph and rows."""
    rows = np.random.default_rng(seed).standard_normal((VOCABULARY, WIDTH), dtype=np.float32)
    table = _weight("table", rows)
    ids = ir.Value(
        name="input_ids", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["batch", "length"])
    )
    axes = ir.Value(
        name="axes",
        const_value=ir.tensor(np.array([1], np.int64), name="axes"),
        type=ir.TensorType(ir.DataType.INT64),
        shape=ir.Shape([1]),
    )
    gathered = ir.node("Gather", [table, ids], outputs=[ir.Value(name="gathered")])
    embedding = ir.Value(
        name="embedding", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["batch", WIDTH])
    )
    mean = ir.node("ReduceMean", [gathered.outputs[0], axes], {"keepdims": 0}, outputs=[embedding])
    return _save(folder, [ids], [embedding], [gathered, mean], {"table": table, "axes": axes}), rows


def _weight(name: str, array: np.ndarray) -> ir.Value:
    return ir.Value(
        name=name,
        const_value=ir.tensor(array, name=name),
        type=ir.TensorType(ir.DataType.FLOAT),
        shape=ir.Shape(array.shape),
    )


def _int(name: str, shape: list[str]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.INT32), shape=ir.Shape(shape))


def _save(
    folder: Path,
    inputs: list[ir.Value],
    outputs: list[ir.Value],
    nodes: list[ir.Node],
    weights: dict[str, ir.Value],
) -> Path:
    graph = ir.Graph(
        inputs, outputs, nodes=nodes, initializers=list(weights.values()), opset_imports={"": 22, DOMAIN: 1}
    )
    folder.mkdir(parents=True, exist_ok=True)
    return save_graph(ir.Model(graph, ir_version=10), folder / "fuse.onnx").graph
