"""The reference itself against others' words: onnx's node vectors and torch's attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx.numpy_helper
import pytest
import torch
from onnx.backend.test.case import node as onnx_node_tests
from onnx.backend.test.case.node import rmsnormalization, rotaryembedding  # noqa: F401  (importing collects)
from onnx.backend.test.case.test_case import TestCase

from plugins.reference.elementwise import skip_rms_normalization
from plugins.reference.paged_attention import causal_attention
from plugins.reference.rotary import apply_rotary
from tests.plugins.attention_case import Shape, expected, make_step


def node_cases(operator: str) -> list[TestCase]:
    """onnx's node tests of one operator, of those collected by the imports above (all of them take 10 s)."""
    return [
        case
        for case in onnx_node_tests._NodeTestCases
        if [node.op_type for node in case.model.graph.node] == [operator]
    ]


def tensors(case: TestCase) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    inputs, outputs = case.data_sets[0]

    def convert(values: Any) -> list[torch.Tensor]:
        return [
            torch.from_numpy(np.array(x if isinstance(x, np.ndarray) else onnx.numpy_helper.to_array(x)))
            for x in values
        ]

    return convert(inputs), convert(outputs)


def attributes(case: TestCase) -> dict[str, Any]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in case.model.graph.node[0].attribute}


# Without position_ids onnx's tables are given per token, a form that we do not have.
ROTARY_CASES = [case for case in node_cases("RotaryEmbedding") if len(case.model.graph.node[0].input) == 4]


@pytest.mark.parametrize("case", ROTARY_CASES, ids=lambda case: case.name)
def test_rotary_matches_onnx(case: TestCase) -> None:
    (x, cos, sin, positions), (wanted,) = tensors(case)
    settings = attributes(case)
    if x.dim() == 3:  # [batch, length, heads * size]
        heads = x.unflatten(2, (settings["num_heads"], -1))
    else:  # [batch, heads, length, size]
        heads = x.transpose(1, 2)
    turned = apply_rotary(
        heads.flatten(0, 1), cos, sin, positions.flatten(), interleaved=bool(settings.get("interleaved", 0))
    ).view(heads.shape)
    found = turned.flatten(2) if x.dim() == 3 else turned.transpose(1, 2)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", node_cases("RMSNormalization"), ids=lambda case: case.name)
def test_rms_normalization_matches_onnx(case: TestCase) -> None:
    (x, weight), (wanted,) = tensors(case)
    settings = attributes(case)
    rows = x.flatten(settings.get("axis", -1))  # ours normalizes the last axis, onnx's all from `axis` on
    found, total = skip_rms_normalization(
        rows, torch.zeros_like(rows), weight.flatten(), settings.get("epsilon", 1e-5)
    )
    torch.testing.assert_close(found.view(x.shape), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(total, rows)


def test_paged_attention_matches_torch_on_whole_sequences() -> None:
    """A prompt in shuffled blocks against scaled_dot_product_attention on the same rows in order."""
    shape = Shape(heads=6, kv_heads=2, head_dim=32)
    step = make_step(shape, [(0, 40)])
    query, key, value = (
        step.inputs[name].view(40, -1, 32).transpose(0, 1)[None] for name in ("query", "key", "value")
    )
    wanted = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, enable_gqa=True
    )
    torch.testing.assert_close(expected(step)[0], wanted[0].transpose(0, 1).flatten(1), rtol=1e-5, atol=1e-5)


def test_decode_matches_the_last_row_of_prefill() -> None:
    """The same tokens, once at once and once as cache plus one: the last row is the same."""
    shape = Shape(sinks=True, alibi=True, softcap=2.0, window=11)
    prefill = make_step(shape, [(0, 30)])
    output, keys, values = expected(prefill)
    last = {name: prefill.inputs[name][-1:] for name in ("query", "key", "value", "slot_mapping")}
    decode = prefill.with_inputs(
        **last,
        key_cache=keys,
        value_cache=values,
        past_seqlens=torch.tensor([29], dtype=torch.int32),
        cumulative_sequence_length=torch.tensor([0, 1], dtype=torch.int32),
    )
    torch.testing.assert_close(expected(decode)[0], output[-1:], rtol=1e-5, atol=1e-6)


def one_head(scores: list[float], **settings: Any) -> torch.Tensor:
    """Attention weights of one query over keys whose products with it are `scores`."""
    count = len(scores)
    defaults: dict[str, Any] = {
        "head_sink": None,
        "alibi_slopes": None,
        "softcap": 0.0,
        "local_window_size": -1,
    }
    return causal_attention(
        torch.ones(1, 1, 1),
        torch.tensor(scores).view(count, 1, 1),
        torch.eye(count).view(count, 1, count),
        **{**defaults, "scale": 1.0, **settings},
    ).flatten()


def test_each_feature_by_hand() -> None:
    """Weights of three keys worked out on paper."""
    e = float(np.e)
    close = torch.testing.assert_close
    close(one_head([0.0, 1.0, 0.0]), torch.tensor([1, e, 1]) / (2 + e))
    close(one_head([0.0, 1.0, 0.0], scale=2.0), torch.tensor([1, e**2, 1]) / (2 + e**2))
    close(one_head([9.0, 1.0, 0.0], local_window_size=2), torch.tensor([0, e, 1]) / (1 + e))
    close(one_head([0.0, 0.0], head_sink=torch.tensor([1.0])), torch.tensor([1.0, 1.0]) / (2 + e))
    close(one_head([0.0, 0.0], alibi_slopes=torch.tensor([1.0])), torch.tensor([1 / e, 1.0]) / (1 + 1 / e))
    near = torch.tensor([[0.0, 1.0]])  # of the key before, and of all farther ones
    close(one_head([0.0, 0.0, 0.0], distance_bias=near), torch.tensor([e, e, 1]) / (1 + 2 * e))
    capped = float(np.exp(0.5 * np.tanh(8.0)))
    close(one_head([4.0, 0.0], softcap=0.5), torch.tensor([capped, 1.0]) / (1 + capped))
