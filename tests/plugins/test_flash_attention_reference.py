"""The reference of `flash_attention` against others' words: torch's attention, and onnx's node vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
import torch
from onnx.backend.test.case import node as onnx_node_tests
from onnx.backend.test.case.node import attention  # noqa: F401  (importing collects)
from onnx.backend.test.case.test_case import TestCase
from torch import Tensor

from plugins.reference.flash_attention import flash_attention, visible_keys

NODE_CASES = [
    case
    for case in onnx_node_tests._NodeTestCases
    if [node.op_type for node in case.model.graph.node] == ["Attention"]
]
LENGTHS = [((17, 54), (17, 54)), ((1, 97), (130, 54)), ((20, 0, 3), (9, 5, 3))]


def packed(
    queries: tuple[int, ...], keys: tuple[int, ...], heads: int, kv_heads: int, seed: int
) -> dict[str, Tensor]:
    """Inputs of a call: packed rows and offsets; head_dim 24, value_dim 40."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "query": normal(sum(queries), heads, 24),
        "key": normal(sum(keys), kv_heads, 24),
        "value": normal(sum(keys), kv_heads, 40),
        "cu_seqlens_q": torch.tensor([0, *np.cumsum(queries)]),
        "cu_seqlens_k": torch.tensor([0, *np.cumsum(keys)]),
    }


@pytest.mark.parametrize(("queries", "keys"), LENGTHS)
@pytest.mark.parametrize("masked", ["full", "causal", "window", "bias"])
def test_reference_is_torchs_attention(queries: tuple[int, ...], keys: tuple[int, ...], masked: str) -> None:
    inputs = packed(queries, keys, heads=4, kv_heads=2, seed=1)
    settings: dict[str, Any] = {}
    bias = torch.randn(len(queries), 4, max(queries), max(keys), generator=torch.Generator().manual_seed(2))
    if masked == "causal":
        settings = {"causal": True}
    elif masked == "window":
        settings = {"window_left": 9, "window_right": 4}
    elif masked == "bias":
        settings = {"bias": bias}
    output, log_sum_exp = flash_attention(**inputs, scale=0.3, **settings)
    row = key_row = 0
    for sequence, (length, key_length) in enumerate(zip(queries, keys, strict=True)):
        rows, key_rows = slice(row, row + length), slice(key_row, key_row + key_length)
        row, key_row = row + length, key_row + key_length
        i, j = torch.arange(length)[:, None] + key_length - length, torch.arange(key_length)[None]
        added = torch.zeros(4, length, key_length)
        if masked == "causal":
            added = added.masked_fill(j > i, -torch.inf)
        elif masked == "window":
            added = added.masked_fill((j <= i - 9) | (j > i + 4), -torch.inf)
        elif masked == "bias":
            added = bias[sequence, :, :length, :key_length]
        q, k, v = (
            inputs[name][part].transpose(0, 1)
            for name, part in (("query", rows), ("key", key_rows), ("value", key_rows))
        )
        wanted = torch.nn.functional.scaled_dot_product_attention(
            q[None], k[None], v[None], attn_mask=added[None], scale=0.3, enable_gqa=True
        )[0].transpose(0, 1)
        sees = (added > -torch.inf).any(dim=-1).T[..., None]  # torch has NaN where a row sees nothing
        torch.testing.assert_close(output[rows], torch.where(sees, wanted, 0.0), rtol=1e-5, atol=1e-5)
        scores = torch.einsum("hqd,hkd->hqk", q, k.repeat_interleave(2, dim=0)) * 0.3 + added
        torch.testing.assert_close(log_sum_exp[:, rows], scores.logsumexp(-1), rtol=1e-5, atol=1e-5)


def onnx_inputs(case: TestCase) -> tuple[dict[str, Tensor], Tensor]:
    """The node's inputs by their names in the schema, and its first output."""
    arrays, outputs = case.data_sets[0]

    def tensor(value: Any) -> Tensor:
        if not isinstance(value, np.ndarray):
            value = onnx.numpy_helper.to_array(value)
        if value.dtype.name == "bfloat16":
            return torch.from_numpy(value.astype(np.float32)).bfloat16()
        return torch.from_numpy(np.array(value))

    names = ("Q", "K", "V", "attn_mask", "past_key", "past_value", "nonpad_kv_seqlen")
    node = case.model.graph.node[0]
    given = [name for name, wired in zip(names, node.input, strict=False) if wired]
    return dict(zip(given, map(tensor, arrays), strict=True)), tensor(outputs[0])


def heads_apart(x: Tensor, heads: int | None) -> Tensor:
    """[batch, rows, heads, size] from [batch, heads, rows, size], or from [batch, rows, heads * size]."""
    if x.dim() == 4:
        return x.transpose(1, 2)
    assert heads is not None
    return x.unflatten(2, (heads, -1))


@pytest.mark.parametrize("case", NODE_CASES, ids=lambda case: case.name)
def test_reference_gives_onnx_vectors(case: TestCase) -> None:
    """Attention-23 to 25, all of it that is not the cache's part.

    Without a cache onnx lets row i see keys up to i ("upper left"), with one keys up to i + the tokens before the
    queries: that is our mask after the keys that no row can see are cut off.
    """
    given, wanted = onnx_inputs(case)
    settings = {a.name: onnx.helper.get_attribute_value(a) for a in case.model.graph.node[0].attribute}
    query = heads_apart(given["Q"], settings.get("q_num_heads"))
    key, value = (heads_apart(given[name], settings.get("kv_num_heads")) for name in ("K", "V"))
    batch, queries = query.shape[:2]
    if "past_key" in given:
        key = torch.cat([given["past_key"].transpose(1, 2), key], dim=1)
        value = torch.cat([given["past_value"].transpose(1, 2), value], dim=1)
    left, right = settings.get("left_window_size", -1), settings.get("right_window_size", -1)
    causal = bool(settings.get("is_causal", 0))
    lengths = given.get("nonpad_kv_seqlen", torch.full((batch,), key.shape[1]))
    if "nonpad_kv_seqlen" not in given and (causal or left >= 0 or right >= 0):
        before = given["past_key"].shape[2] if "past_key" in given else 0
        if before + queries > key.shape[1]:
            pytest.skip("the mask's corner lies behind the last key, which this operator cannot say")
        assert causal or before + queries == key.shape[1]
        lengths = torch.full((batch,), before + queries)
    mask = given.get("attn_mask")
    if mask is not None:
        if mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
        missing = key.shape[1] - mask.shape[-1]
        mask = torch.nn.functional.pad(mask.float(), (0, missing), value=-torch.inf)
        mask = mask.expand(torch.broadcast_shapes(mask.shape, (1, 1, queries, key.shape[1])))
    output, _ = flash_attention(
        query.flatten(0, 1),
        torch.cat([key[b, :n] for b, n in enumerate(lengths.tolist())]),
        torch.cat([value[b, :n] for b, n in enumerate(lengths.tolist())]),
        torch.arange(batch + 1) * queries,
        torch.nn.functional.pad(lengths.cumsum(0), (1, 0)),
        bias=mask,
        scale=settings.get("scale", 0.0),
        causal=causal,
        window_left=left + 1 if left >= 0 else -1,
        window_right=-1 if causal else right,
        softcap=settings.get("softcap", 0.0),
    )
    found = output.unflatten(0, (batch, queries))
    found = found.flatten(2) if given["Q"].dim() == 3 else found.transpose(1, 2)
    accuracy = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[wanted.dtype]
    torch.testing.assert_close(found, wanted, rtol=accuracy, atol=accuracy)


def test_onnx_has_cases_of_every_kind() -> None:
    """So that an import which collects nothing is not taken for success."""
    names = " ".join(case.name for case in NODE_CASES)
    assert len(NODE_CASES) >= 80
    for kind in ("gqa", "causal", "softcap", "attn_mask_bool", "nonpad", "with_past", "bidirectional_window"):
        assert kind in names


def test_visible_keys_by_hand() -> None:
    """Two queries, four keys: positions 2 and 3."""

    def seen(**settings: Any) -> list[list[int]]:
        defaults: dict[str, Any] = {"causal": False, "window_left": -1, "window_right": -1}
        rows = visible_keys(2, 4, **{**defaults, **settings})
        return [row.nonzero().flatten().tolist() for row in rows]

    assert seen() == [[0, 1, 2, 3], [0, 1, 2, 3]]
    assert seen(causal=True) == [[0, 1, 2], [0, 1, 2, 3]]
    assert seen(window_left=2) == [[1, 2, 3], [2, 3]]
    assert seen(window_left=1, causal=True) == [[2], [3]]
    assert seen(window_left=2, window_right=0) == [[1, 2], [2, 3]]
    assert seen(window_left=0, causal=True) == [[], []]


def test_sinks_alibi_softcap_and_scales_by_hand() -> None:
    """One query of zeros before three keys: all scores come from what is added."""
    query, key = torch.zeros(1, 1, 8), torch.zeros(3, 1, 8)
    value = torch.tensor([[1.0], [2.0], [4.0]])[:, None].expand(3, 1, 8)
    offsets = torch.tensor([0, 1]), torch.tensor([0, 3])

    def attend(**settings: Any) -> float:
        return float(flash_attention(query, key, value, *offsets, **settings)[0][0, 0, 0])

    assert attend() == pytest.approx(7 / 3)
    assert attend(head_sink=torch.zeros(1)) == pytest.approx(7 / 4)
    slopes = torch.tensor([np.log(2.0)])  # weights 1/4, 1/2, 1
    assert attend(alibi_slopes=slopes) == pytest.approx((0.25 + 1 + 4) / 1.75)
    assert attend(value_scale=torch.tensor([3.0])) == pytest.approx(7)
    query, key = torch.ones(1, 1, 8), torch.tensor([0.0, 1.0, 100.0])[:, None, None].expand(3, 1, 8)
    capped = np.exp(2 * np.tanh(np.array([0.0, 8.0, 800.0]) * 0.5 / 2))
    assert attend(softcap=2.0, scale=0.5) == pytest.approx(float((capped * [1, 2, 4]).sum() / capped.sum()))
    capped = np.exp(2 * np.tanh(np.array([0.0, 8.0, 800.0]) * 0.5 * 0.25 * 0.1 / 2))
    scales = {"query_scale": torch.tensor([0.25]), "key_scale": torch.tensor([0.1])}
    assert attend(softcap=2.0, scale=0.5, **scales) == pytest.approx(
        float((capped * [1, 2, 4]).sum() / capped.sum())
    )
