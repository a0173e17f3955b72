"""softmax(scale * query @ key^T + mask) @ value, written out, becomes one Attention of the standard's.

Scaled dot-product attention: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762. Where query, key and value
are rows [batch, length, heads * size] whose heads are moved apart for the products, the operator reads the rows
themselves and gives rows, so that no transposition is left.

A query whose mask hides every key has no meaning: written out it gets the mean of all values, from ONNX Runtime's
operator zeros. Only padding can be such a query.
"""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import onnx_ir as ir

from .attention_heads import HEADS_FIRST, own_heads, rows_from, rows_of
from .attention_mask import spell_out_masks
from .matching import (
    Dims,
    dims,
    insert_before,
    integer_attribute,
    integer_weight,
    made_by,
    node_name,
    only_reader,
    output,
    rank,
    replace,
    scalar,
)
from .rule import Matches, NearMiss, Rule

FIRST_OPSET = 23
"""The opset that brought Attention."""
_KEYS_LAST = ((0, 1, 3, 2), (0, 2, 3, 1))


class _Found(NamedTuple):
    """The operands, each [batch, heads, length, size], and the product with the values."""

    query: ir.Value
    key: ir.Value
    value: ir.Value
    masks: tuple[ir.Value, ...]  # added to the scores one after the other
    scale: float
    product: ir.Node


Joined = dict[tuple[ir.Value, ...], ir.Value]
"""Sums of masks that were made: layers share them."""


class DenseAttention(Rule):
    """Anchored at the Softmax."""

    name: ClassVar[str] = "dense_attention"

    def rewrite(self, model: ir.Model) -> Matches:
        """Fuses where nothing else reads scores or weights; the mask must be added after the scaling."""
        count, missed = 0, []
        joined: Joined = {}
        for node in list(model.graph):
            if node.op_type != "Softmax" or node.domain != "" or rank(node.outputs[0]) != 4:
                continue
            found = _match(node)
            if isinstance(found, _Found) and model.opset_imports.get("", 0) < FIRST_OPSET:
                found = f"opset {model.opset_imports.get('', 0)} has no Attention"
            if isinstance(found, str):
                missed.append(NearMiss(node_name(node), found))
                continue
            if found is not None:
                _fuse(found, node, joined)
                count += 1
        if count:
            spell_out_masks(model)
        return Matches(count, tuple(missed))


def _match(softmax: ir.Node) -> _Found | str | None:
    """The attention around a Softmax; a reason when it only looks like one; None when nothing does."""
    product = only_reader(softmax.outputs[0], "MatMul")
    scores = softmax.inputs[0]
    if integer_attribute(softmax, "axis", -1) not in (-1, 3):
        return None
    if product is None or product.inputs[0] is not softmax.outputs[0]:
        return "something else than the product with the values reads the weights"
    scale, masks, inner = 1.0, [], [scores]
    while scores is not None and _scores(scores) is None:
        apart = _without_mask(scores)
        if apart is None:
            return "the operand of the softmax is no product of queries and keys"
        scores, mask = apart
        masks.append(mask)
        inner.append(scores)
    while scores is not None and made_by(scores, "MatMul") is None:
        scaled = _scaled(scores)
        if scaled is None:
            return "the operand of the softmax is no product of queries and keys"
        scores, factor = scaled
        scale *= factor
        inner.append(scores)
    matmul = made_by(scores, "MatMul")
    assert matmul is not None
    for value in inner:
        if value is not None and only_reader(value) is None:
            return f"something else reads {value.name}"
    query, factor = _unscaled(matmul.inputs[0])
    key, other_factor = _key(matmul.inputs[1])
    value = product.inputs[1]
    if query is None or key is None or value is None:
        return "the keys are not transposed for the product"
    for mask in masks:
        if not _mask_fits(mask, matmul.outputs[0]):
            return f"the mask has shape {dims(mask)}, the scores {dims(matmul.outputs[0])}"
    key, value = own_heads(key), own_heads(value)
    shapes = [dims(query), dims(key), dims(value)]
    if any(shape is None or len(shape) != 4 for shape in shapes):
        return f"query, key and value have shapes {shapes[0]}, {shapes[1]} and {shapes[2]}"
    heads = [shape[1] for shape in shapes if shape is not None]
    counts = [count for count in heads if isinstance(count, int)]
    if len(counts) < 3 or counts[1] != counts[2] or counts[0] % counts[1]:
        return f"query, key and value have {heads[0]}, {heads[1]} and {heads[2]} heads"
    return _Found(query, key, value, tuple(reversed(masks)), scale * factor * other_factor, product)


def _without_mask(value: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """Scores and the mask that was added to them last, where `value` is their sum."""
    add = made_by(value, "Add")
    for mask, other in () if add is None else (add.inputs, tuple(reversed(add.inputs))):
        if other is not None and mask is not None and _leads_to_scores(other):
            return other, mask
    return None


def _scores(value: ir.Value | None) -> ir.Value | None:
    """The product that `value` is, up to factors; None when it is none."""
    for _ in range(4):
        if made_by(value, "MatMul") is not None:
            return value
        scaled = None if value is None else _scaled(value)
        if scaled is None:
            return None
        value = scaled[0]
    return None


def _scaled(value: ir.Value | None) -> tuple[ir.Value, float] | None:
    """x and a factor, where `value` is x times a constant."""
    product = made_by(value, "Mul")
    if product is not None:
        for x, factor in (product.inputs, tuple(reversed(product.inputs))):
            number = scalar(factor)
            if number is not None and x is not None:
                return x, number
    quotient = made_by(value, "Div")
    number = None if quotient is None else scalar(quotient.inputs[1])
    if quotient is not None and number and quotient.inputs[0] is not None:
        return quotient.inputs[0], 1 / number
    return None


def _unscaled(value: ir.Value | None) -> tuple[ir.Value | None, float]:
    """`value` without constant factors, and their product."""
    factor = 1.0
    while value is not None:
        scaled = _scaled(value)
        if scaled is None:
            break
        value, number = scaled
        factor *= number
    return value, factor


def _key(value: ir.Value | None) -> tuple[ir.Value | None, float]:
    """The keys [batch, heads, length, size] whose transpose `value` is, and a constant factor on the way.

    torch transposes rows [batch, length, heads, size] at once; the keys are then a new transposition of them.
    """
    value, factor = _unscaled(value)
    node = made_by(value, "Transpose")
    if node is None or "perm" not in node.attributes:
        return None, factor
    order = tuple(node.attributes["perm"].as_ints())
    source, inner_factor = _unscaled(node.inputs[0])
    if order == _KEYS_LAST[0]:
        return source, factor * inner_factor
    if order != _KEYS_LAST[1] or source is None:
        return None, factor
    shape = dims(source)
    moved = ir.node(
        "Transpose",
        [source],
        {"perm": list(HEADS_FIRST)},
        outputs=[
            output(
                f"{node.outputs[0].name}_keys",
                source.dtype,
                None if shape is None else tuple(shape[axis] for axis in HEADS_FIRST),
            )
        ],
        name=f"{node_name(node)}_keys",
    )
    return insert_before(node, moved), factor * inner_factor


def _mask_fits(mask: ir.Value, scores: ir.Value) -> bool:
    """Whether a mask has the axes of the scores, and no others: a broadcast the other way is no mask."""
    given, wanted = dims(mask), dims(scores)
    if given is None or wanted is None or len(given) > len(wanted) or mask.dtype != scores.dtype:
        return False
    pairs = zip(reversed(given), reversed(wanted), strict=False)
    # The last axis is spelled out: a mask of one key would be padded, not repeated.
    return given[-1] == wanted[-1] and all(size in (1, full) for size, full in pairs)


def _leads_to_scores(value: ir.Value | None) -> bool:
    """Whether `value` is a product of queries and keys, or a sum of one and masks."""
    return value is not None and (_scores(value) is not None or _without_mask(value) is not None)


def _joined(masks: tuple[ir.Value, ...], place: ir.Node, joined: Joined) -> ir.Value | None:
    """The sum of the masks; None when there is none. The first ones are added first."""
    if len(masks) < 2:
        return masks[0] if masks else None
    if masks not in joined:
        first, last = _joined(masks[:-1], place, joined), masks[-1]
        assert first is not None
        sizes = [(1,) * (4 - (rank(mask) or 0)) + (dims(mask) or ()) for mask in (first, last)]
        shape = [size if size != 1 else other for size, other in zip(*sizes, strict=True)]
        name = f"{last.name}_sum_{len(joined)}"
        add = ir.node("Add", [first, last], outputs=[output(name, last.dtype, shape)], name=name)
        joined[masks] = insert_before(place, add)
    return joined[masks]


def _fuse(found: _Found, softmax: ir.Node, joined: Joined) -> None:
    """Puts the Attention where the product with the values was."""
    rows = [rows_of(value) for value in (found.query, found.key, found.value)]
    scale = found.scale
    together = rows_from(found.product.outputs[0])
    shape = dims(found.query)
    value_shape = dims(found.value)
    assert shape is not None
    assert value_shape is not None
    attributes: dict[str, int | float] = {}
    operands: list[ir.Value | None] = [found.query, found.key, found.value]
    old, last = found.product.outputs[0], found.product
    new_shape: Dims = (*shape[:3], value_shape[3])
    if together is not None and all(value is not None for value in rows):
        assert isinstance(shape[1], int)
        assert isinstance(value_shape[1], int)
        attributes = {"q_num_heads": shape[1], "kv_num_heads": value_shape[1]}
        for index in (0, 1):  # Whisper scales the queries before it moves their heads apart
            rows[index], factor = _unscaled(rows[index])
            scale *= factor
        operands = list(rows)
        old, last = together.outputs[0], together
        new_shape = dims(old) or ()
    size = shape[3]
    if not isinstance(size, int) or not math.isclose(scale, size**-0.5, rel_tol=1e-6):
        attributes["scale"] = scale
    mask = _joined(found.masks, last, joined)
    if mask is not None and rank(mask) == 1:
        graph = softmax.graph
        assert isinstance(graph, ir.Graph)
        widened = ir.node(
            "Unsqueeze",
            [mask, integer_weight(graph, [0], "axes")],
            outputs=[output(f"{mask.name}_row", mask.dtype, (1, *(dims(mask) or ())))],
            name=f"{mask.name}_row",
        )
        mask = insert_before(last, widened)
    attention = ir.node(
        "Attention",
        [*operands, *([] if mask is None else [mask])],
        attributes,
        outputs=[output(f"{old.name}_attention", old.dtype, new_shape)],
        name=f"{node_name(softmax)}_attention",
        metadata_props=dict(softmax.metadata_props),
    )
    replace(old, insert_before(last, attention))
