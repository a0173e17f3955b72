"""Embeddings that are looked up, summed and normalized become one slipway::EmbedLayerNormalization.

Words, positions and token types of encoders, words and positions of some decoders: the tables' rows are read once, and
no tensor of embeddings is written before the norm.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import onnx_ir as ir

from plugins.schemas import DOMAIN, EMBED_LAYER_NORMALIZATION, SKIP_LAYER_NORMALIZATION, VERSION

from .matching import (
    Dims,
    dims,
    float_attribute,
    insert_before,
    integer_attribute,
    is_weight,
    made_by,
    node_name,
    only_reader,
    output,
    replace,
)
from .rule import Matches, NearMiss, Rule

_MOST = 3
"""Tables whose rows the operator sums."""


class _Lookup(NamedTuple):
    """Rows `ids` of a table [entries, hidden]."""

    ids: ir.Value
    table: ir.Value


class EmbedLayerNorm(Rule):
    """Anchored at a SkipLayerNormalization whose summands are rows of tables."""

    name: ClassVar[str] = "embed_layer_norm"

    def rewrite(self, model: ir.Model) -> Matches:
        """Fuses where nothing else reads the rows; their sum may be read."""
        count, missed = 0, []
        for node in list(model.graph):
            if node.op_type != SKIP_LAYER_NORMALIZATION.name or node.domain != DOMAIN:
                continue
            found = _match(node)
            if isinstance(found, str):
                missed.append(NearMiss(node_name(node), found))
            elif found is not None:
                _fuse(node, found)
                count += 1
        if count:
            model.opset_imports[DOMAIN] = VERSION
        return Matches(count, tuple(missed))


def _match(norm: ir.Node) -> list[_Lookup] | str | None:
    """The lookups that are summed, one for each row first; None where the summands are other values."""
    leaves: list[ir.Value] = []
    for value in norm.inputs[:2]:
        add = made_by(value, "Add")
        if add is not None and value is not None and only_reader(value) is norm:
            leaves += [given for given in add.inputs if given is not None]
        elif value is not None:
            leaves.append(value)
    found = [_lookup(value) for value in leaves]
    lookups = [lookup for lookup in found if lookup is not None]
    if len(lookups) < 2:
        return None
    if len(lookups) < len(leaves) or len(lookups) > _MOST:
        return f"{len(leaves)} values are summed, {len(lookups)} of them rows of tables"
    if len(norm.inputs) > 4 and norm.inputs[4] is not None:
        return "a bias is added too"
    shape = dims(norm.outputs[0])
    lookups.sort(key=lambda lookup: dims(lookup.ids) != (shape or ())[:-1])  # stable: sums keep their order
    if shape is None or dims(lookups[0].ids) != shape[:-1]:
        return f"no table is read once for each row of {shape}"
    if not all(_repeats(dims(lookup.ids), shape[:-1]) for lookup in lookups):
        return f"the tables are read for shapes {[dims(lookup.ids) for lookup in lookups]}"
    return lookups


def _lookup(value: ir.Value) -> _Lookup | None:
    """`value` as rows of a constant table that nothing else reads."""
    node = made_by(value, "Gather")
    if node is None or integer_attribute(node, "axis", 0) != 0 or only_reader(value) is None:
        return None
    table, ids = node.inputs
    if table is None or ids is None or not is_weight(table) or len(dims(table) or ()) != 2:
        return None
    if table.dtype != ir.DataType.FLOAT or ids.dtype not in (ir.DataType.INT32, ir.DataType.INT64):
        return None
    return _Lookup(ids, table)


def _repeats(given: Dims | None, shape: Dims) -> bool:
    """Whether `given` is the last axes of `shape`; leading axes of size 1 say no more than absent ones."""
    sizes = given or ()
    while len(sizes) > 1 and sizes[0] == 1:
        sizes = sizes[1:]
    return 0 < len(sizes) <= len(shape) and sizes == shape[len(shape) - len(sizes) :]


def _fuse(norm: ir.Node, lookups: list[_Lookup]) -> None:
    first, second, *third = lookups
    bias = norm.inputs[3] if len(norm.inputs) > 3 else None
    inputs = [*first, *second, norm.inputs[2], bias, *(third[0] if third else ())]
    while inputs[-1] is None:
        inputs.pop()
    outputs = [
        output(f"{old.name}_embed", old.dtype, dims(old)) if old.name else output("", None, None)
        for old in norm.outputs
    ]
    fused = ir.node(
        EMBED_LAYER_NORMALIZATION.name,
        inputs,
        {"epsilon": float_attribute(norm, "epsilon", 1e-5)},
        domain=DOMAIN,
        outputs=outputs,
        name=f"{node_name(norm)}_embed",
        metadata_props=dict(norm.metadata_props),
    )
    insert_before(norm, fused)
    for old, new in zip(norm.outputs, outputs, strict=True):
        if old.name:
            new.metadata_props.update(old.metadata_props)
            replace(old, new)
