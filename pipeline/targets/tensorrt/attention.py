"""Forms of the standard Attention that the builders take and compute otherwise than the standard says.

Seen in TensorRT-RTX 1.7: `nonpad_kv_seqlen` is ignored (the parser calls it an unused input), and a causal mask begins
at the upper left, where the standard counts positions from the end of what is cached.
"""

from __future__ import annotations

import onnx_ir as ir

from model_repo.runtime.errors import BadInput
from pipeline.fuse.matching import dims, integer_attribute

_PAST_KEY, _NONPAD = 4, 6
"""Places of the operator's inputs."""


def check_attention(model: ir.Model) -> None:
    """Raises BadInput that names the first node of such a form, and what to write in its place."""
    for node in model.graph.all_nodes():
        if node.op_type != "Attention" or node.domain != "":
            continue
        given = [*node.inputs, *[None] * 7]
        name = f"Attention {node.name!r}"
        if given[_NONPAD] is not None:
            raise BadInput(f"{name} has nonpad_kv_seqlen, which TensorRT ignores; give it a mask instead")
        if not integer_attribute(node, "is_causal", 0):
            continue
        lengths = [_length(value) for value in given[:2]]
        if given[_PAST_KEY] is not None or None in lengths or lengths[0] != lengths[1]:
            raise BadInput(
                f"{name} is causal with queries of length {lengths[0]} and keys of length {lengths[1]}: TensorRT's "
                "causal mask begins at the first key; give it a mask instead"
            )


def _length(value: ir.Value | None) -> int | str | None:
    """The axis of tokens: [batch, heads, length, size] or [batch, length, heads * size]."""
    shape = dims(value)
    return None if shape is None or len(shape) < 3 else shape[-2]
