"""`kv_write`: the kernel under the emulator against the reference, the reference against torch."""

from __future__ import annotations

import pytest
import torch

from plugins.checks import kv_write as checks
from plugins.checks._kv_write import E4M3, INT8, Setup, case_of
from plugins.cuda.case import Case
from plugins.cuda.emulated import Build, check
from plugins.cuda.library import Library
from plugins.reference.kv_write import (
    Rotary,
    StaticScales,
    TokenScales,
    kv_write,
    quantized,
    rms_norm,
    row_scales,
)
from plugins.reference.paged_attention import paged_attention
from plugins.reference.rotary import apply_rotary, rotary_tables
from tests.plugins.cuda.emulation import SMALL_UNDER_ASAN, wrong

OPERATORS = ("kv_write",)


@SMALL_UNDER_ASAN
def test_the_kernel_gives_what_the_reference_gives(flavour: str, scale: str, seed: int) -> None:
    assert wrong(checks, OPERATORS, flavour, scale, seed) == {}


def test_indices_out_of_range_are_found_where_indices_are_checked() -> None:
    good = case_of(Setup(rotary_dim=32), torch.Generator().manual_seed(4))

    def changed(name: str, value: int, words: str) -> Case:
        tensor = good.tensors[name].clone()
        tensor[3] = value
        tensors = {**good.tensors, name: tensor}
        return Case(f"{name} {value}", "kv_write", tensors, good.expected, good.attributes, error=words)

    slots = 16 * good.tensors["key_cache"].shape[0]
    assert (
        check(
            [
                changed("slot_mapping", slots, "slot_mapping holds a slot beyond the pool"),
                changed("position_ids", 40, "position_ids is beyond cos and sin"),
                changed("position_ids", -1, "position_ids is beyond cos and sin"),
            ],
            Build("plain", OPERATORS),
        )
        == {}
    )


@pytest.mark.parametrize("interleaved", [False, True])
def test_a_packed_row_is_split_and_queries_are_turned_where_they_lie(interleaved: bool) -> None:
    """Views of one tensor; `query_out` lies at `query`. In the library, since a case's tensors lie apart."""
    generator = torch.Generator().manual_seed(5)
    tokens, heads, kv_heads, size = 19, 6, 2, 80
    rows = torch.randn(tokens, heads + 2 * kv_heads, size, generator=generator).bfloat16()
    query, key, value = rows.split([heads, kv_heads, kv_heads], dim=1)
    pools = [torch.zeros(3, 16, kv_heads, size, dtype=torch.bfloat16) for _ in range(2)]
    slots = torch.randperm(48, generator=generator)[:tokens].int()
    positions = torch.arange(tokens, dtype=torch.int32)
    cos, sin = rotary_tables(tokens, size)
    want = kv_write(
        key,
        value,
        *pools,
        slots,
        position_ids=positions,
        rotary=Rotary(cos, sin, interleaved),
        query=query,
    )
    before = rows.clone()
    tensors = {
        "key": key,
        "value": value,
        "key_cache": pools[0],
        "value_cache": pools[1],
        "slot_mapping": slots,
        "position_ids": positions,
        "cos": cos,
        "sin": sin,
        "query": query,
        "query_out": query,
    }
    library = Library(Build("plain", OPERATORS).library())
    library.run("kv_write", tensors, {"rotary_interleaved": interleaved})
    assert want.query is not None
    assert torch.equal(pools[0], want.key_cache)
    assert torch.equal(pools[1], want.value_cache)
    assert torch.equal(query, want.query)
    assert torch.equal(rows[:, heads:], before[:, heads:])


def test_the_reference_writes_what_paged_attention_writes() -> None:
    generator = torch.Generator().manual_seed(6)
    key, value = torch.randn(7, 2, 64, generator=generator), torch.randn(7, 2, 32, generator=generator)
    key_cache = torch.randn(5, 16, 2, 64, generator=generator).half()
    value_cache = torch.randn(5, 16, 2, 32, generator=generator).half()
    slots = torch.tensor([3, -1, 40, 41, 79, 0, 5], dtype=torch.int32)
    cu_seqlens = torch.tensor([0, 2, 6], dtype=torch.int32)
    positions = torch.tensor([4, 5, 0, 1, 2, 3, 9], dtype=torch.int32)
    cos, sin = rotary_tables(10, 64)
    turned = apply_rotary(key, cos, sin, positions, interleaved=False)
    table = torch.tensor([[0, -1], [2, 4]], dtype=torch.int32)
    query = torch.zeros(7, 2, 64)
    past = torch.tensor([4, 0], dtype=torch.int32)
    _, keys, values = paged_attention(
        query, turned, value, key_cache, value_cache, cu_seqlens, past, table, slots
    )
    got = kv_write(
        key,
        value,
        key_cache,
        value_cache,
        slots,
        cu_seqlens=cu_seqlens,
        position_ids=positions,
        rotary=Rotary(cos, sin),
    )
    assert torch.equal(got.key_cache, keys)
    assert torch.equal(got.value_cache, values)
    assert not torch.equal(keys, key_cache)


@pytest.mark.parametrize("interleaved", [False, True])
def test_the_references_rotary_is_a_product_of_complex_numbers(interleaved: bool) -> None:
    generator = torch.Generator().manual_seed(7)
    heads = torch.randn(6, 3, 40, generator=generator, dtype=torch.float64)
    positions = torch.tensor([0, 1, 7, 7, 30, 2])
    cos, sin = rotary_tables(31, 24)
    turned = apply_rotary(heads, cos, sin, positions, interleaved=interleaved)
    part = heads[..., :24]
    pairs = part.unflatten(-1, (12, 2)) if interleaved else part.unflatten(-1, (2, 12)).transpose(-1, -2)
    angles = positions[:, None] * 10000.0 ** (-torch.arange(12, dtype=torch.float64) / 12)
    product = (
        torch.view_as_complex(pairs.contiguous()) * torch.polar(torch.ones_like(angles), angles)[:, None]
    )
    want = torch.view_as_real(product)
    want = want.flatten(-2) if interleaved else want.transpose(-1, -2).flatten(-2)
    torch.testing.assert_close(turned[..., :24].double(), want, rtol=0, atol=1e-5)
    assert torch.equal(turned[..., 24:], heads[..., 24:].float())


def test_the_references_norm_is_torchs() -> None:
    heads = torch.randn(5, 3, 48, generator=torch.Generator().manual_seed(8)) * 3
    weight = torch.rand(48)
    torch.testing.assert_close(
        rms_norm(heads, weight, 1e-3), torch.nn.functional.rms_norm(heads, (48,), weight, 1e-3)
    )
    assert torch.equal(rms_norm(heads, None, 1e-3), heads)


@pytest.mark.parametrize("dtype", [INT8, E4M3])
def test_quantized_rows_are_as_near_as_the_type_allows(dtype: torch.dtype) -> None:
    rows = torch.randn(64, 96, generator=torch.Generator().manual_seed(9))
    scale = row_scales(rows, dtype)
    stored = quantized(rows, scale, dtype)
    edge = 127 if dtype == INT8 else 448
    assert torch.equal(stored.float().abs().amax(dim=1), torch.full((64,), float(edge)))
    error = (stored.float() * scale[:, None] - rows).abs()
    # Half a step: of 1 for int8, of the value's own binade for e4m3 (3 bits of mantissa; least step 2^-9).
    step = torch.ones_like(rows) if dtype == INT8 else (rows / scale[:, None]).abs().log2().floor().exp2() / 8
    assert bool((error <= 0.5001 * scale[:, None] * step.clamp(min=2.0**-9)).all())


def test_rows_of_zeros_and_rows_beyond_the_pools_range() -> None:
    rows = torch.tensor([[0.0, -0.0, 0.0, 0.0], [300.0, -1000.0, 0.5, 1.5]])
    assert torch.equal(row_scales(rows[:1], INT8), torch.zeros(1))
    assert quantized(rows, torch.tensor([0.0, 1.0]), INT8).tolist() == [[0, 0, 0, 0], [127, -127, 0, 2]]
    assert quantized(rows[1:], torch.tensor([1.0]), E4M3).float().tolist() == [[288.0, -448.0, 0.5, 1.5]]


def test_scales_by_row_and_given_scales_write_the_same_when_they_are_equal() -> None:
    generator = torch.Generator().manual_seed(10)
    key = torch.randn(1, 2, 64, generator=generator)
    pools = [torch.zeros(1, 16, 2, 64, dtype=INT8) for _ in range(2)]
    slots = torch.tensor([9], dtype=torch.int32)
    by_row = TokenScales(torch.zeros(1, 16, 2), torch.zeros(1, 16, 2))
    first = kv_write(key, -key, *pools, slots, scales=by_row)
    assert first.token_scales is not None
    scales = first.token_scales.key[0, 9]
    assert torch.equal(scales, key[0].abs().amax(dim=1) / 127)
    second = kv_write(key, -key, *pools, slots, scales=StaticScales(scales, scales))
    assert torch.equal(first.key_cache, second.key_cache)
    assert torch.equal(first.value_cache, -second.key_cache)
