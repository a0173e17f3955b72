"""The packed decoder graph under the linear contract: native attention over caches that know no blocks.

A sequence owns one slot: a stretch of `max_length` positions in each cache. A step takes `length` new tokens of each
of `batch` slots: one token of many (decode), or many of one (prefill). New keys and values go in by TensorScatter, and
Attention reads the whole slot under an explicit mask, because the builders ignore lengths and take a causal mask to
start at the upper left.

| input | type, shape | meaning |
| --- | --- | --- |
| input_ids | int32 [batch, length] | new tokens of each slot |
| past_lens | int32 [batch] | positions of the slot that hold tokens already; the new ones follow |
| logits_indices | int32 [selected] | rows of batch * length whose logits are wanted |
| key_cache_i, value_cache_i | [batch, kv_heads, max_length, dim] | the slots' part of layer i's caches |

Outputs: `logits` float32 [selected, vocab], and the caches with the new rows, which are bound to the inputs' memory.
A prompt that is padded to a step's length writes rubbish behind its end, which the next tokens overwrite before any
mask shows it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from model_repo.runtime.contract import key_cache, key_cache_out, value_cache, value_cache_out
from model_repo.runtime.errors import BadInput
from pipeline.fuse.matching import float_attribute, integer_attribute, replace
from plugins.schemas import DOMAIN, PAGED_ATTENTION

from .nodes import Nodes
from .standard import write_out
from .wanted_rows import choose_rows_early

BATCH, LENGTH = "batch", "length"
_REFUSED = {
    "head_sink": "attention sinks",
    "q_norm_weight": "norms inside attention",
    "k_norm_weight": "norms inside attention",
    "k_scale": "quantized pools",
    "v_scale": "quantized pools",
    "alibi_slopes": "ALiBi",
    "tree_mask": "tree masks",
    "distance_bias": "a bias by distance",
}
"""Inputs of PagedAttention that native attention has no word for."""


def lower_to_linear(model: ir.Model, max_length: int) -> None:
    """Rewrites a fused decoder graph in place, as the module says, for slots of `max_length` positions.

    Raises BadInput for features of attention, and for operators, that the standard ones do not have.
    """
    attention = [n for n in model.graph if n.domain == DOMAIN and n.op_type == PAGED_ATTENTION.name]
    for node in attention:
        _check(node)
    write_out(model, keep=frozenset({PAGED_ATTENTION.name}))
    step = _Step(model, max_length)
    for layer, node in enumerate(attention):
        _lower_attention(node, layer, step)
    step.finish()
    passes.ShapeInferencePass()(model)
    choose_rows_early(model)
    model.opset_imports.pop(DOMAIN, None)


def narrow_caches(model: ir.Model) -> None:
    """Caches of a graph that was converted to 16 bit take that type themselves, in place.

    The builders take a cache update only straight between an input and an output of the network, so the casts that
    stand there go away.
    """
    for value in model.graph.inputs:
        casts = [node for node in value.consumers() if node.op_type == "Cast"]
        if not _is_cache(value) or not casts:
            continue
        value.type = casts[0].outputs[0].type
        for cast in casts:
            cast.outputs[0].replace_all_uses_with(value)
            model.graph.remove(cast, safe=True)
    for place, value in enumerate(model.graph.outputs):
        end = value.producer()
        if not _is_cache(value) or end is None or end.op_type != "Cast":
            continue
        written, name = end.inputs[0], value.name
        assert written is not None
        value.name = f"{name}_wide"
        written.name = name
        model.graph.outputs[place] = written
        model.graph.remove(end, safe=True)


def _is_cache(value: ir.Value) -> bool:
    return (value.name or "").startswith(("key_cache_", "value_cache_"))


def _check(node: ir.Node) -> None:
    """Raises BadInput for what native attention cannot do."""
    found = {words for name, words in _REFUSED.items() if _input(node, name) is not None}
    if float_attribute(node, "softcap", 0.0):
        found.add("softcap")
    if found:
        raise BadInput(
            f"attention node {node.name!r} uses {', '.join(sorted(found))}, which the native attention of TensorRT and "
            "TensorRT-RTX does not have; build for target 'onnxruntime'"
        )


class _Step:
    """The graph's inputs under the linear contract, and what all layers share: positions and masks."""

    def __init__(self, model: ir.Model, max_length: int) -> None:
        self.graph = model.graph
        self.max_length = max_length
        self._masks: dict[int, ir.Value] = {}
        self._by_heads: dict[tuple[int, int], ir.Value] = {}
        old = {value.name: value for value in self.graph.inputs}
        self._old = old
        first = next(iter(self.graph))
        self._nodes = nodes = Nodes(first)
        ids = _input_value("input_ids", (BATCH, LENGTH))
        self.past = old["past_lens"]
        self.past.shape = ir.Shape((BATCH,))
        self.inputs = [ids, self.past, old["logits_indices"]]
        self.caches: list[ir.Value] = []
        self.caches_out: list[ir.Value] = []
        int64, int32 = ir.DataType.INT64, ir.DataType.INT32
        self._size = nodes.add("Shape", ids, dtype=int64)
        length = nodes.add(
            "Gather", self._size, nodes.constant(np.array(1, np.int64), "native_one"), dtype=int64
        )
        zero, one = (nodes.constant(np.array(n, np.int64), f"native_scalar_{n}") for n in (0, 1))
        steps = nodes.add("Range", zero, length, one, dtype=int64)
        past = nodes.add("Cast", self.past, dtype=int64, to=int(int64))
        self.write_indices = past
        begin = nodes.add("Unsqueeze", past, nodes.integers(1))
        self.positions = nodes.add("Add", begin, steps, shape=(BATCH, LENGTH))
        """int64 [batch, length]: position of each new token in its slot."""
        replace(old["input_ids"], nodes.add("Reshape", ids, nodes.integers(-1), shape=("tokens",)))
        if old["position_ids"].uses():
            flat = nodes.add("Reshape", self.positions, nodes.integers(-1), shape=("tokens",))
            flat = nodes.add("Cast", flat, dtype=int32, to=int(int32), shape=("tokens",))
            # The attention nodes read position_ids too; they are replaced later.
            replace(old["position_ids"], flat)

    def mask(self, window: int) -> ir.Value:
        """bool [batch, 1, length, max_length]: the keys that each query sees. `window` 0 or less: the whole past."""
        window = max(window, 0)
        if window not in self._masks:
            nodes = self._nodes
            keys = nodes.constant(np.arange(self.max_length, dtype=np.int64), "native_keys")
            queries = nodes.add("Unsqueeze", self.positions, nodes.integers(1, 3))
            mask = nodes.add("LessOrEqual", keys, queries, dtype=ir.DataType.BOOL)
            if window:
                width = nodes.constant(np.array(window, np.int64), f"native_window_{window}")
                first = nodes.add("Sub", queries, width)
                near = nodes.add("Greater", keys, first, dtype=ir.DataType.BOOL)
                mask = nodes.add("And", mask, near, dtype=ir.DataType.BOOL)
            self._masks[window] = mask
        return self._masks[window]

    def by_heads(self, heads: int, size: int) -> ir.Value:
        """int64 [4]: the shape [batch, length, heads, size]."""
        if (heads, size) not in self._by_heads:
            shape = self._nodes.add("Concat", self._size, self._nodes.integers(heads, size), axis=0)
            self._by_heads[heads, size] = shape
        return self._by_heads[heads, size]

    def cache(self, name: str, old: ir.Value, heads: int, size: int) -> ir.Value:
        """The new input in place of a pool."""
        shape = (BATCH, heads, self.max_length, size)
        value = ir.Value(name=name, type=old.type, shape=ir.Shape(shape))
        self.caches.append(value)
        return value

    def finish(self) -> None:
        """Makes the linear inputs and outputs the graph's own."""
        logits = self.graph.outputs[0]
        self.graph.inputs.clear()
        self.graph.inputs.extend([*self.inputs, *self.caches])
        self.graph.outputs.clear()
        self.graph.outputs.extend([logits, *self.caches_out])
        self.graph.sort()


def _lower_attention(node: ir.Node, layer: int, step: _Step) -> None:
    """One PagedAttention becomes RotaryEmbedding, TensorScatter and Attention."""
    nodes = Nodes(node)
    heads, kv_heads = (integer_attribute(node, name, 0) for name in ("num_heads", "kv_num_heads"))
    pools = [_input(node, name) for name in ("key_cache", "value_cache")]
    assert pools[0] is not None
    assert pools[1] is not None
    key_dim, value_dim = (_last_size(pool) for pool in pools)
    query, key, value = (_input(node, name) for name in ("query", "key", "value"))
    if key is None or value is None:
        parts = (heads * key_dim, kv_heads * key_dim, kv_heads * value_dim)
        query, key, value = nodes.several("Split", 3, query, nodes.integers(*parts), axis=-1)
    query = _by_heads(nodes, query, heads, key_dim, step)
    key = _by_heads(nodes, key, kv_heads, key_dim, step)
    value = _by_heads(nodes, value, kv_heads, value_dim, step)
    if integer_attribute(node, "do_rotary", 0):
        query, key = (_turned(nodes, node, rows, key_dim, step) for rows in (query, key))
    caches = []
    names = ((key_cache, key_cache_out), (value_cache, value_cache_out))
    for (name, name_out), pool, new, size in zip(
        names, pools, (key, value), (key_dim, value_dim), strict=True
    ):
        assert pool is not None
        past = step.cache(name(layer), pool, kv_heads, size)
        written = nodes.add(
            "TensorScatter", past, new, step.write_indices, axis=2, mode="linear", shape=past.shape
        )
        written.name = name_out(layer)
        step.caches_out.append(written)
        caches.append(written)
    scale = float_attribute(node, "scale", 0.0)
    attributes: dict[str, Any] = {"scale": scale} if scale else {}
    attended = nodes.add(
        "Attention",
        query,
        *caches,
        step.mask(integer_attribute(node, "local_window_size", -1)),
        **attributes,
    )
    rows = nodes.add("Transpose", attended, perm=[0, 2, 1, 3])
    flat = nodes.add(
        "Reshape", rows, nodes.integers(-1, heads * value_dim), shape=("tokens", heads * value_dim)
    )
    for pool_out in node.outputs[1:]:
        assert not list(pool_out.consumers())
    step.graph.outputs[:] = [value for value in step.graph.outputs if value not in node.outputs[1:]]
    replace(node.outputs[0], flat)
    step.graph.remove(node, safe=True)


def _by_heads(nodes: Nodes, rows: ir.Value | None, heads: int, size: int, step: _Step) -> ir.Value:
    """[tokens, heads * size] as [batch, heads, length, size]."""
    apart = nodes.add("Reshape", rows, step.by_heads(heads, size), shape=(BATCH, LENGTH, heads, size))
    return nodes.add("Transpose", apart, perm=[0, 2, 1, 3], shape=(BATCH, heads, LENGTH, size))


def _turned(nodes: Nodes, node: ir.Node, rows: ir.Value, size: int, step: _Step) -> ir.Value:
    """Rotary embedding by the node's own tables."""
    cos, sin = _input(node, "cos_cache"), _input(node, "sin_cache")
    turned = 2 * _last_size(cos)
    attributes: dict[str, Any] = {"interleaved": integer_attribute(node, "rotary_interleaved", 0)}
    if turned != size:
        attributes["rotary_embedding_dim"] = turned
    return nodes.add("RotaryEmbedding", rows, cos, sin, step.positions, shape=rows.shape, **attributes)


def _input(node: ir.Node, name: str) -> ir.Value | None:
    place = PAGED_ATTENTION.input_index(name)
    return node.inputs[place] if place < len(node.inputs) else None


def _last_size(value: ir.Value | None) -> int:
    """The last axis of a pool or table, which the export makes a fixed size."""
    assert value is not None
    assert value.shape is not None
    size = value.shape[-1]
    assert isinstance(size, int)
    return size


def _input_value(name: str, shape: tuple[int | str, ...]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.INT32), shape=ir.Shape(shape))
