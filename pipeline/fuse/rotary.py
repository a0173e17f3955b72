"""Rotary embedding moves into the attention operator, as tables of cosines and sines.

Rotary embedding: Su et al. 2021, https://arxiv.org/abs/2104.09864. The tables come from the graph's own
computation, run for every position once at build time, so that any scaling of frequencies and amplitudes
(llama3, yarn, linear) comes out as the model computes it. All layers share them.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from plugins.schemas import DOMAIN, PAGED_ATTENTION

from .evaluation import evaluate
from .matching import (
    add_weight,
    dims,
    insert_before,
    integer_attribute,
    integer_weight,
    node_name,
    output,
)
from .rule import Matches, NearMiss, Rule
from .turning import Turn, find_turn

FloatArray = npt.NDArray[np.float32]

QUERY, KEY = PAGED_ATTENTION.input_index("query"), PAGED_ATTENTION.input_index("key")
COS, SIN = PAGED_ATTENTION.input_index("cos_cache"), PAGED_ATTENTION.input_index("sin_cache")
POSITIONS = PAGED_ATTENTION.input_index("position_ids")


class _Tables(NamedTuple):
    """cos and sin [max_length, head_dim / 2] and the graph input that says each token's row."""

    cos: FloatArray
    sin: FloatArray
    positions: ir.Value


class Rotary(Rule):
    """The Llama kind: element i of a head's first half pairs with element i of its second half."""

    name: ClassVar[str] = "rotary"

    def __init__(self, max_length: int | None) -> None:
        """`max_length`: positions that the tables cover. None: nothing is fused, and the report says so."""
        self._max_length = max_length

    def rewrite(self, model: ir.Model) -> Matches:
        """Fuses where query and key are turned by the same angles, computed from token positions alone."""
        computed: dict[tuple[str, str, int], _Tables | str] = {}
        stored: dict[tuple[str, bytes], ir.Value] = {}
        count, missed = 0, []
        for node in list(model.graph):
            if node.op_type != PAGED_ATTENTION.name or node.domain != DOMAIN:
                continue
            if integer_attribute(node, "do_rotary", 0) or node.inputs[KEY] is None:
                continue
            query, key = find_turn(node, QUERY, "num_heads"), find_turn(node, KEY, "kv_num_heads")
            if query is None and key is None:
                continue  # a model without rotary embedding
            found = _same_turn(query, key)
            if isinstance(found, Turn):
                name = (found.cos.name or "", found.sin.name or "", found.token_axis)
                if name not in computed:
                    computed[name] = self._tables(model, found)
                tables = computed[name]
                if isinstance(tables, _Tables) and query is not None and key is not None:
                    _attach(model.graph, node, query, key, tables, stored)
                    count += 1
                    continue
                found = str(tables)
            missed.append(NearMiss(node_name(node), found))
        return Matches(count, tuple(missed))

    def _tables(self, model: ir.Model, turn: Turn) -> _Tables | str:
        """The tables for positions 0 .. max_length - 1, or why there are none."""
        if self._max_length is None:
            return "the longest sequence is not known, so the tables have no size"
        nodes, inputs = _ancestors([turn.cos, turn.sin])
        sources = [value for value in inputs if value.is_graph_input()]
        if len(sources) != 1 or len(dims(sources[0]) or ()) != 1:
            names = sorted(value.name or "" for value in sources)
            return f"the angles depend on {names}, not on the tokens' positions alone"
        (positions,) = sources
        if any(node.domain != "" for node in nodes):
            return "the angles are not computed by standard operators"

        def run(rows: npt.NDArray[np.int32]) -> list[FloatArray] | None:
            known = {value.name or "": _array(value) for value in inputs if value is not positions}
            known[positions.name or ""] = rows
            results = evaluate(nodes, model.opset_imports, known, [turn.cos, turn.sin])
            flat = [_rows(result, len(rows), turn) for result in results]
            return None if any(table is None for table in flat) else [t for t in flat if t is not None]

        everything = run(np.arange(self._max_length, dtype=np.int32))
        # A neighbour's position must not matter: any few positions give the rows of the whole table.
        few = np.array([position % self._max_length for position in (5, 2, 3)], np.int32)
        some = run(few)
        if everything is None or some is None:
            return "cosines and sines are not laid out as [tokens, head size] beside what they turn"
        if any(not np.array_equal(a[few], b) for a, b in zip(everything, some, strict=True)):
            return "a token's angles depend on the other tokens' positions"
        half = turn.head_dim // 2
        if any(not np.array_equal(table[:, :half], table[:, half:]) for table in everything):
            return "the two halves of a head turn by different angles"
        cos, sin = (np.ascontiguousarray(table[:, :half]) for table in everything)
        return _Tables(cos, sin, positions)


def _same_turn(query: Turn | None, key: Turn | None) -> Turn | str:
    """The turn that query and key share, or why they share none."""
    if query is None or key is None:
        return f"only the {'key' if query is None else 'query'} is turned"
    if query.cos is not key.cos or query.sin is not key.sin or query.token_axis != key.token_axis:
        return "query and key are turned by different tables"
    if query.head_dim % 2:
        return f"a head has {query.head_dim} elements, an odd number"
    return query


def _ancestors(values: list[ir.Value]) -> tuple[list[ir.Node], list[ir.Value]]:
    """All nodes that `values` are computed by, in order, and what these read that no node makes."""
    nodes: dict[ir.Node, None] = {}
    inputs: dict[ir.Value, None] = {}
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        node = value.producer()
        if node is None:
            inputs[value] = None
        elif node not in nodes:
            nodes[node] = None
            waiting += [given for given in node.inputs if given is not None]
    graph = values[0].graph
    assert isinstance(graph, ir.Graph)
    return [node for node in graph if node in nodes], list(inputs)


def _array(value: ir.Value) -> npt.NDArray[np.generic]:
    tensor = value.const_value
    assert tensor is not None, f"{value.name} has no data"
    return tensor.numpy()


def _rows(result: npt.NDArray[np.generic], tokens: int, turn: Turn) -> FloatArray | None:
    """`result`, broadcast against what is turned, as [tokens, head size]; None when it is not that."""
    expected = [1] * result.ndim
    if result.ndim < turn.token_axis:
        return None
    expected[-turn.token_axis], expected[-1] = tokens, turn.head_dim
    if list(result.shape) != expected:
        return None
    return result.reshape(tokens, turn.head_dim).astype(np.float32)


def _attach(
    graph: ir.Graph,
    node: ir.Node,
    query: Turn,
    key: Turn,
    tables: _Tables,
    stored: dict[tuple[str, bytes], ir.Value],
) -> None:
    """Gives the attention node what is turned, the tables and the positions."""
    for index, turn, part in ((QUERY, query, "query"), (KEY, key, "key")):
        width = turn.heads * turn.head_dim
        old = node.inputs[index]
        assert old is not None
        flat = ir.node(
            "Reshape",
            [turn.rows, integer_weight(graph, [-1, width], "shape")],
            outputs=[output(f"{node.outputs[0].name}_{part}", old.dtype, _flat_shape(turn.rows, width))],
            name=f"{node_name(node)}_{part}_rows",
        )
        node.replace_input_with(index, insert_before(node, flat))
    if len(node.inputs) <= POSITIONS:
        node.resize_inputs(POSITIONS + 1)
    for index, table, name in ((COS, tables.cos, "rotary_cos"), (SIN, tables.sin, "rotary_sin")):
        key_of_table = (name, table.tobytes())
        known = stored.get(key_of_table)
        if known is None:
            unique = f"{name}_{sum(stored_name == name for stored_name, _ in stored)}"
            known = stored[key_of_table] = add_weight(graph, ir.tensor(table, name=unique), unique)
        node.replace_input_with(index, known)
    node.replace_input_with(POSITIONS, tables.positions)
    node.attributes["do_rotary"] = ir.AttrInt64("do_rotary", 1)
    node.attributes["rotary_interleaved"] = ir.AttrInt64("rotary_interleaved", 0)


def _flat_shape(rows: ir.Value, width: int) -> tuple[int | str, ...] | None:
    """[tokens, width], where the other sizes of `rows` are one symbolic size and ones."""
    named = [size for size in dims(rows) or () if isinstance(size, str)]
    return (named[0], width) if len(named) == 1 else None
