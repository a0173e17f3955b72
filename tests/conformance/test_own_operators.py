"""Our CPU operators against onnx's own node tests of the standard operators that they stand for."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import helper
from onnx.backend.test.case.node import (  # noqa: F401  (importing makes their cases)
    attention,
    gelu,
    layernormalization,
    rmsnormalization,
    rotaryembedding,
    swish,
)
from onnx.backend.test.case.test_case import TestCase

from plugins.cpu.build import registered
from plugins.schemas import DOMAIN, OPERATORS, VERSION

from .node_cases import array, made_so_far

Array = npt.NDArray[Any]

BLOCK = 2
"""Tokens a cache block: smaller than the sequences of the cases."""


def run(operator: str, attributes: dict[str, Any], **inputs: Array) -> list[Array]:
    """All outputs of one node of ours."""
    schema = OPERATORS[operator]
    node = helper.make_node(
        operator,
        [p.name if p.name in inputs else "" for p in schema.inputs],
        [p.name for p in schema.outputs],
        domain=DOMAIN,
        **attributes,
    )
    values = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(given.dtype), given.shape)
        for name, given in inputs.items()
    ]
    outputs = [helper.make_tensor_value_info(p.name, onnx.TensorProto.FLOAT, None) for p in schema.outputs]
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid(DOMAIN, VERSION)]
    graph = helper.make_graph([node], "one_node", values, outputs)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=11)
    options = onnxruntime.SessionOptions()
    registered(options)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found: list[Array] = session.run(None, inputs)
    return found


def settings(case: TestCase) -> dict[str, Any]:
    node = case.model.graph.node[0]
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def given(case: TestCase) -> tuple[dict[str, Array], Array]:
    """The node's inputs by their names in onnx's schema, and its first output."""
    node = case.model.graph.node[0]
    schema = onnx.defs.get_schema(node.op_type)
    names = [p.name for p, wired in zip(schema.inputs, node.input, strict=False) if wired]
    inputs, outputs = case.data_sets[0]
    return dict(zip(names, map(array, inputs), strict=True)), array(outputs[0])


def assert_case(case: TestCase, found: Array, wanted: Array) -> None:
    np.testing.assert_allclose(found.reshape(wanted.shape), wanted, rtol=max(case.rtol, 1e-5), atol=1e-6)


def in_float32(case: TestCase) -> bool:
    return bool(case.model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT)


def causal_cases() -> list[TestCase]:
    """Causal attention without a mask, in float32, each query with a key of its own: what the operator is for."""
    kept = []
    for case in made_so_far("Attention"):
        if not settings(case).get("is_causal") or not in_float32(case):
            continue
        inputs, _ = given(case)
        queries, keys = inputs["Q"].shape[-2], inputs["K"].shape[-2]
        keyless = queries > keys or int(inputs.get("nonpad_kv_seqlen", np.array(keys)).min()) < queries
        if "attn_mask" not in inputs and not keyless:
            kept.append(case)
    return kept


def heads_apart(x: Array, heads: int | None) -> Array:
    """[batch, rows, heads, size] from [batch, heads, rows, size] or [batch, rows, heads * size]."""
    return x.transpose(0, 2, 1, 3) if x.ndim == 4 else x.reshape(*x.shape[:2], heads, -1)


@pytest.mark.parametrize("case", causal_cases(), ids=lambda case: case.name)
def test_paged_attention_is_causal_attention(case: TestCase) -> None:
    """The batch packed; each sequence's past in scattered blocks, its new keys given beside the queries."""
    inputs, wanted = given(case)
    asked = settings(case)
    query = heads_apart(inputs["Q"], asked.get("q_num_heads"))
    key, value = (heads_apart(inputs[name], asked.get("kv_num_heads")) for name in ("K", "V"))
    if "past_key" in inputs:
        past = np.full(len(query), inputs["past_key"].shape[2])
        key = np.concatenate([inputs["past_key"].transpose(0, 2, 1, 3), key], axis=1)
        value = np.concatenate([inputs["past_value"].transpose(0, 2, 1, 3), value], axis=1)
    elif "nonpad_kv_seqlen" in inputs:
        past = inputs["nonpad_kv_seqlen"] - query.shape[1]
    else:
        past = np.zeros(len(query), np.int64)  # keys behind the last query are seen by nobody
    batch, new, heads, _ = query.shape
    blocks = -(-(int(past.max()) + new) // BLOCK)
    table = np.random.default_rng(0).permutation(batch * blocks).reshape(batch, blocks)
    pools = {}
    for name, rows in (("key", key), ("value", value)):
        pool = np.full((batch * blocks, BLOCK, *rows.shape[2:]), np.nan, np.float32)
        for sequence, length in enumerate(past):
            for position in range(length):
                pool[table[sequence, position // BLOCK], position % BLOCK] = rows[sequence, position]
        pools[name] = pool
    positions = [(s, int(past[s]) + row) for s in range(batch) for row in range(new)]
    slots = [table[s, p // BLOCK] * BLOCK + p % BLOCK for s, p in positions]

    def packed(rows: Array) -> Array:
        return np.stack([rows[s, p].reshape(-1) for s, p in positions])

    window = asked.get("left_window_size")
    attributes = {
        "num_heads": heads,
        "kv_num_heads": key.shape[2],
        "scale": asked.get("scale", 0.0),
        "softcap": asked.get("softcap", 0.0),
        "local_window_size": -1 if window is None else window + 1,
    }
    output, *_ = run(
        "PagedAttention",
        attributes,
        query=query.reshape(batch * new, -1),
        key=packed(key),
        value=packed(value),
        key_cache=pools["key"],
        value_cache=pools["value"],
        cumulative_sequence_length=np.arange(0, batch * new + 1, new, dtype=np.int32),
        past_seqlens=past.astype(np.int32),
        block_table=table.astype(np.int32),
        slot_mapping=np.array(slots, np.int32),
    )
    found = output.reshape(batch, new, heads, -1)
    assert_case(case, found.transpose(0, 2, 1, 3) if wanted.ndim == 4 else found, wanted)


def test_there_are_enough_causal_cases() -> None:
    assert len(causal_cases()) >= 10


@pytest.mark.parametrize(
    "case",
    [case for case in made_so_far("RotaryEmbedding") if len(case.data_sets[0][0]) == 4],
    ids=lambda c: c.name,
)
def test_paged_attention_turns_keys_as_onnx_does(case: TestCase) -> None:
    """The rotated keys are what the operator writes to its pool. Tables given per token are not ours."""
    inputs, wanted = given(case)
    asked = settings(case)
    rows = heads_apart(inputs["X"], asked.get("num_heads"))
    batch, length, heads, size = rows.shape
    tokens = batch * length
    flat = rows.reshape(tokens, heads * size)
    _, keys, _ = run(
        "PagedAttention",
        {
            "num_heads": heads,
            "kv_num_heads": heads,
            "do_rotary": 1,
            "rotary_interleaved": asked.get("interleaved", 0),
        },
        query=flat,
        key=flat,
        value=flat,
        key_cache=np.zeros((batch, length, heads, size), np.float32),
        value_cache=np.zeros((batch, length, heads, size), np.float32),
        cumulative_sequence_length=np.arange(0, tokens + 1, length, dtype=np.int32),
        past_seqlens=np.zeros(batch, np.int32),
        block_table=np.arange(batch, dtype=np.int32)[:, None],
        slot_mapping=np.arange(tokens, dtype=np.int32),
        cos_cache=inputs["cos_cache"],
        sin_cache=inputs["sin_cache"],
        position_ids=inputs["position_ids"].reshape(-1).astype(np.int32),
    )
    assert_case(case, keys.transpose(0, 2, 1, 3) if wanted.ndim == 4 else keys, wanted)


@pytest.mark.parametrize("case", made_so_far("RMSNormalization"), ids=lambda case: case.name)
def test_skip_rms_normalization_without_a_skip(case: TestCase) -> None:
    """Ours normalizes the last axis, onnx's all axes from `axis` on."""
    inputs, wanted = given(case)
    axis = settings(case).get("axis", -1)
    rows = inputs["X"].reshape(-1, int(np.prod(inputs["X"].shape[axis:])))
    found, _ = run(
        "SkipRMSNormalization",
        {"epsilon": settings(case).get("epsilon", 1e-5)},
        input=rows,
        skip=np.zeros_like(rows),
        weight=inputs["scale"].reshape(-1),
    )
    assert_case(case, found, wanted)


@pytest.mark.parametrize("case", made_so_far("LayerNormalization"), ids=lambda case: case.name)
def test_skip_layer_normalization_without_a_skip(case: TestCase) -> None:
    inputs, wanted = given(case)
    axis = settings(case).get("axis", -1)
    rows = inputs["X"].reshape(-1, int(np.prod(inputs["X"].shape[axis:])))
    found, _ = run(
        "SkipLayerNormalization",
        {"epsilon": settings(case).get("epsilon", 1e-5)},
        input=rows,
        skip=np.zeros_like(rows),
        weight=inputs["Scale"].reshape(-1),
        bias=inputs["B"].reshape(-1),
    )
    assert_case(case, found, wanted)


@pytest.mark.parametrize("case", made_so_far("Gelu"), ids=lambda case: case.name)
def test_gelu_with_a_bias_of_zero(case: TestCase) -> None:
    inputs, wanted = given(case)
    tanh = int(settings(case).get("approximate", b"none") == b"tanh")
    x = inputs["X"].reshape(-1, inputs["X"].shape[-1])
    (found,) = run("BiasGelu", {"tanh": tanh}, input=x, bias=np.zeros(x.shape[-1], np.float32))
    assert_case(case, found, wanted)


@pytest.mark.parametrize(
    "case",
    [c for c in made_so_far("Swish") if settings(c).get("alpha", 1.0) == 1.0],
    ids=lambda case: case.name,
)
def test_swiglu_of_ones_is_swish(case: TestCase) -> None:
    inputs, wanted = given(case)
    x = inputs["X"].reshape(1, -1)
    (found,) = run("SwiGLU", {}, gate_up=np.concatenate([x, np.ones_like(x)], axis=1))
    assert_case(case, found, wanted)
