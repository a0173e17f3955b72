"""`slipway::PagedAttention` in standard ONNX operators: an oracle that needs neither our kernels nor torch.

Each node is replaced by a model-local function, written out for that node's attributes, so ONNX Runtime (or
any other implementation of ONNX) runs an exported graph as it is. Every token gathers the whole cache of its
sequence, [tokens, length, heads, size]: right, and slow.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 24
INPUTS = {
    "query": 0,
    "key": 1,
    "value": 2,
    "key_cache": 3,
    "value_cache": 4,
    "starts": 5,
    "past_lens": 6,
    "block_table": 7,
    "slot_mapping": 10,
    "sink": 11,
}
"""Places of the node's inputs that are understood here; rotary embedding is still in standard operators."""

FAR_BELOW = -1e30
"""Score of a key that a query does not see."""


def with_standard_attention(model: onnx.ModelProto, *, causal: bool = True) -> onnx.ModelProto:
    """A copy of `model` whose PagedAttention nodes call functions of standard operators.

    `causal` False lets tokens see later ones of their sequence: a fault, to show that a test can fail.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    nodes = [node for node in changed.graph.node if node.op_type == "PagedAttention"]
    for index, node in enumerate(nodes):
        attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        assert not attributes.get("do_rotary"), "rotary embedding inside the node is not understood here"
        given = {name: node.input[place] for name, place in INPUTS.items() if place < len(node.input)}
        given = {name: argument for name, argument in given.items() if argument}
        assert len(given) == sum(bool(name) for name in node.input), "an input that is not understood here"
        node.op_type = f"PagedAttention_{index}"
        changed.functions.append(_function(node.op_type, list(given), attributes, causal))
        del node.attribute[:], node.input[:]
        node.input.extend(given.values())
    return changed


class _Body:
    """The nodes of a function, appended by calling: `body("Add", a, b)` gives the name of the sum."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []

    def __call__(self, op_type: str, *inputs: str, named: str | None = None, **attributes: Any) -> str:
        """Appends a node; its only output is called `named`, or gets a name of its own."""
        output = named or f"{op_type.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [output], **attributes))
        return output

    def ints(self, *values: int) -> str:
        """int64 [len(values)]."""
        return self("Constant", value=numpy_helper.from_array(np.array(values, np.int64)))

    def number(self, value: float, dtype: type = np.float32) -> str:
        """A scalar."""
        return self("Constant", value=numpy_helper.from_array(np.array(value, dtype)))

    def int64(self, name: str) -> str:
        """`name` cast to int64."""
        return self("Cast", name, to=TensorProto.INT64)

    def column(self, vector: str) -> str:
        """[n] -> [n, 1]."""
        return self("Unsqueeze", vector, self.ints(1))

    def count(self, tensor: str, axis: int) -> str:
        """int64 scalar: the size of an axis."""
        return self("Squeeze", self("Shape", tensor, start=axis, end=axis + 1))

    def range(self, count: str) -> str:
        """int64 [count]: 0, 1, ..."""
        return self("Range", self.number(0, np.int64), count, self.number(1, np.int64))


def _function(
    name: str, inputs: list[str], attributes: Mapping[str, Any], causal: bool
) -> onnx.FunctionProto:
    """PagedAttention with these inputs and attributes."""
    body = _Body()
    heads, kv_heads = attributes["num_heads"], attributes["kv_num_heads"]
    window, softcap = attributes.get("local_window_size", -1), attributes.get("softcap", 0.0)
    slots = body.int64("slot_mapping")
    _write_pool(body, "key_cache", "key", slots)
    _write_pool(body, "value_cache", "value", slots)

    # Which sequence each token belongs to, and its position there. Rows past the last sequence are padding.
    starts = body.int64("starts")
    begins = body("Slice", starts, body.ints(0), body.ints(-1))
    ends = body("Slice", starts, body.ints(1), body.ints(np.iinfo(np.int64).max))
    row = body.range(body.count("query", 0))
    ended = body("GreaterOrEqual", body.column(row), body("Unsqueeze", ends, body.ints(0)))
    sequence = body("ReduceSum", body("Cast", ended, to=TensorProto.INT64), body.ints(1), keepdims=0)
    batch = body.count("past_lens", 0)
    in_sequence = body("Cast", body("Less", sequence, batch), to=TensorProto.FLOAT)
    sequence = body("Min", sequence, body("Sub", batch, body.ints(1)))
    past = body("Gather", body.int64("past_lens"), sequence)
    position = body("Add", past, body("Sub", row, body("Gather", begins, sequence)))
    length = body("Add", past, body("Gather", body("Sub", ends, begins), sequence))

    # The cache of each token's sequence: [tokens, keys, kv_heads, size].
    table = body("Max", body("Gather", body.int64("block_table"), sequence), body.ints(0))
    keys = body("Transpose", _cache(body, "key_cache_out", table), perm=[0, 2, 3, 1])
    values = body("Transpose", _cache(body, "value_cache_out", table), perm=[0, 2, 1, 3])

    size = body("Shape", "key_cache", start=3)
    grouped = body("Concat", body.ints(0, kv_heads, heads // kv_heads), size, axis=0)
    scores = body("MatMul", body("Reshape", "query", grouped), keys)  # [tokens, kv_heads, group, keys]
    if attributes.get("scale"):
        scores = body("Mul", scores, body.number(attributes["scale"]))
    else:
        scores = body("Div", scores, body("Sqrt", body("Cast", size, to=TensorProto.FLOAT)))
    if softcap:
        cap = body.number(softcap)
        scores = body("Mul", body("Tanh", body("Div", scores, cap)), cap)

    key = body("Unsqueeze", body.range(body.count(scores, 3)), body.ints(0))
    if causal:
        visible = body("LessOrEqual", key, body.column(position))
    else:
        visible = body("Less", key, body.column(length))
    if window >= 0:
        first = body("Sub", body.column(position), body.ints(window - 1))
        visible = body("And", visible, body("GreaterOrEqual", key, first))
    visible = body("Unsqueeze", visible, body.ints(1, 2))
    scores = body("Where", visible, scores, body.number(FAR_BELOW))
    attended = body("MatMul", _softmax(body, scores, kv_heads, "sink" in inputs), values)
    flat = body("Reshape", attended, body.ints(0, -1))
    body("Mul", flat, body.column(in_sequence), named="output")
    return helper.make_function(
        "slipway",
        name,
        inputs,
        ["output", "key_cache_out", "value_cache_out"],
        body.nodes,
        [helper.make_opsetid("", OPSET)],
    )


def _write_pool(body: _Body, pool: str, rows: str, slots: str) -> None:
    """`<pool>_out`: the pool with `rows` at their slots; rows of slot -1 go to a spare row, then cut off."""
    shape = body("Shape", pool)
    row_shape = body("Shape", pool, start=2)
    flat = body("Reshape", pool, body("Concat", body.ints(-1), row_shape, axis=0))
    count = body.count(flat, 0)
    spare = body("Expand", body.number(0.0), body("Concat", body.ints(1), row_shape, axis=0))
    slots = body("Where", body("Less", slots, body.ints(0)), count, slots)
    new = body("Reshape", rows, body("Concat", body.ints(-1), row_shape, axis=0))
    written = body("ScatterND", body("Concat", flat, spare, axis=0), body.column(slots), new)
    kept = body("Slice", written, body.ints(0), body("Reshape", count, body.ints(1)))
    body("Reshape", kept, shape, named=f"{pool}_out")


def _cache(body: _Body, pool: str, table: str) -> str:
    """The rows of the blocks in `table` [tokens, max_blocks]: [tokens, keys, kv_heads, size]."""
    blocks = body("Gather", pool, table)
    return body("Reshape", blocks, body("Concat", body.ints(0, -1), body("Shape", pool, start=2), axis=0))


def _softmax(body: _Body, scores: str, kv_heads: int, has_sink: bool) -> str:
    """Softmax over the keys; a sink takes part in it and is cut off."""
    if not has_sink:
        return body("Softmax", scores, axis=-1)
    sink = body("Reshape", "sink", body.ints(1, kv_heads, -1, 1))
    sink = body("Expand", sink, body("Concat", body("Shape", scores, end=3), body.ints(1), axis=0))
    weights = body("Softmax", body("Concat", scores, sink, axis=-1), axis=-1)
    return body("Slice", weights, body.ints(0), body("Shape", scores, start=3), body.ints(3))
