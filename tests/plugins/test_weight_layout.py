"""The layout of packed weights: bit by bit, back and forth, and what quantization loses."""

from __future__ import annotations

import pytest
import torch

from model_repo.runtime.errors import BadInput
from plugins.reference.weight_only_gemm import dequantized, weight_only_gemm
from plugins.weight_layout import (
    pack,
    pack_codes,
    pack_groups,
    quantize_e4m3,
    quantize_int4,
    quantize_int8,
    unpack_codes,
    unpack_groups,
)


def codes_of(dtype: torch.dtype, k: int, n: int) -> torch.Tensor:
    codes = torch.randint(0, 256, (k, n), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    return codes % 16 if dtype == torch.uint8 else codes.view(dtype)


@pytest.mark.parametrize("k", [64, 200])
def test_int4_lies_where_the_layout_says(k: int) -> None:
    """Each nibble by the words of the module's docstring, one at a time."""
    n = 136
    codes = codes_of(torch.uint8, k, n)
    packed = pack_codes(codes)
    assert packed.shape == (3, -(-k // 64), 2048)
    for row, column in [(0, 0), (1, 0), (2, 9), (8, 16), (31, 63), (33, 64), (63, 135), (k - 1, 71)]:
        slab, rest = divmod(row, 64)
        h, i, t, e = rest // 32, rest // 8 % 4, rest // 2 % 4, rest % 2
        block, rest = divmod(column, 64)
        j, r, g = rest // 16, rest // 8 % 2, rest % 8
        nibble = 4 * e + i
        byte = packed[block, slab, 512 * j + 16 * (4 * g + t) + 4 * (2 * h + r) + nibble // 2]
        assert int(byte) >> 4 * (nibble % 2) & 15 == codes[row, column]


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_bytes_lie_where_the_layout_says(dtype: torch.dtype) -> None:
    codes = codes_of(dtype, 72, 136).view(torch.uint8)
    packed = pack_codes(codes.view(dtype)).view(torch.uint8)
    assert packed.shape == (3, 3, 2048)
    for row, column in [(0, 0), (1, 0), (2, 9), (8, 16), (31, 63), (33, 64), (71, 135)]:
        slab, rest = divmod(row, 32)
        s, u, t, e = rest // 16, rest // 8 % 2, rest // 2 % 4, rest % 2
        block, rest = divmod(column, 64)
        j, r, g = rest // 16, rest // 8 % 2, rest % 8
        place = 512 * j + 16 * (4 * g + t) + 4 * (2 * s + r) + 2 * u + e
        assert packed[block, slab, place] == codes[row, column]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize(("k", "n"), [(64, 64), (200, 100), (8, 1)])
def test_unpacking_gives_back_what_was_packed(dtype: torch.dtype, k: int, n: int) -> None:
    codes = codes_of(dtype, k, n)
    got = unpack_codes(pack_codes(codes), k, n)
    assert got.dtype == dtype
    assert torch.equal(got.view(torch.uint8), codes.view(torch.uint8))


def test_groups_lie_where_the_layout_says() -> None:
    scales = torch.arange(3 * 136).reshape(3, 136)
    packed = pack_groups(scales)
    assert packed.shape == (3, 3, 64)
    for column in (0, 1, 8, 16, 63, 64, 135):
        block, rest = divmod(column, 64)
        j, r, g = rest // 16, rest // 8 % 2, rest % 8
        assert torch.equal(packed[block, :, 8 * g + 2 * j + r], scales[:, column])
    assert torch.equal(unpack_groups(packed, 136), scales)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group", [32, 128])
def test_int4_is_within_half_a_step(symmetric: bool, group: int) -> None:
    weight = torch.randn(200, 72, generator=torch.Generator().manual_seed(2)) + 0.5
    weight[:32, 0] = 0
    packed = quantize_int4(weight, group, symmetric=symmetric, dtype=torch.float16)
    assert packed.scale is not None
    assert (packed.zero_point is None) == symmetric
    steps = unpack_groups(packed.scale, 72).float().repeat_interleave(group, dim=0)[:200]
    # A scale that float16 rounds down cuts off the group's end, a zero point that is rounded shifts it.
    slack = 0.51 if symmetric else 1.01
    assert bool(((dequantized(packed) - weight).abs() <= slack * steps + 1e-6).all())


def test_eight_bits_are_within_half_a_step() -> None:
    weight = torch.randn(200, 72, generator=torch.Generator().manual_seed(3))
    whole, grouped, floating = quantize_int8(weight), quantize_int8(weight, 64), quantize_e4m3(weight)
    assert whole.channel_scale is not None
    assert bool(((dequantized(whole) - weight).abs() <= 0.501 * whole.channel_scale).all())
    assert float((dequantized(grouped) - weight).abs().max()) < 0.6 * float(weight.abs().max()) / 127
    assert floating.channel_scale is not None
    assert bool(
        ((dequantized(floating) - weight).abs() <= weight.abs() / 16 + floating.channel_scale / 512).all()
    )


def test_the_reference_is_a_product_with_the_dequantized_weights() -> None:
    generator = torch.Generator().manual_seed(4)
    x, bias = torch.randn(3, 96, generator=generator), torch.randn(40, generator=generator)
    codes = codes_of(torch.uint8, 96, 40)
    scale, zero = torch.rand(3, 40, generator=generator).half(), codes_of(torch.uint8, 3, 40)
    packed = pack(codes, group=32, scale=scale, zero_point=zero)
    want = torch.zeros(3, 40)
    for group in range(3):
        rows = slice(32 * group, 32 * group + 32)
        want += x[:, rows] @ ((codes[rows].float() - zero[group].float()) * scale[group].float())
    torch.testing.assert_close(weight_only_gemm(x, packed, bias), want + bias, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "codes", "more"),
    [
        ("a code of int4 is 16", torch.full((32, 8), 16, dtype=torch.uint8), {"group": 32}),
        ("codes are torch.int32", torch.zeros(32, 8, dtype=torch.int32), {"group": 32}),
        ("group is 16; allowed are", torch.zeros(32, 8, dtype=torch.uint8), {"group": 16}),
        ("int4 weights need a group", torch.zeros(32, 8, dtype=torch.uint8), {"group": 0}),
        ("groups need scale", torch.zeros(32, 8, dtype=torch.int8), {"group": 32, "scale": None}),
        (
            "only int4 weights have zero points",
            torch.zeros(32, 8, dtype=torch.int8),
            {"group": 32, "zero": True},
        ),
        (r"scale is \[1, 8\]; it must be \[2, 8\]", torch.zeros(64, 8, dtype=torch.int8), {"group": 32}),
    ],
)
def test_what_cannot_be_packed_is_refused(words: str, codes: torch.Tensor, more: dict[str, object]) -> None:
    zero = torch.zeros(1, 8, dtype=torch.uint8) if more.get("zero") else None
    scale = None if "scale" in more else torch.ones(1, 8)
    with pytest.raises(BadInput, match=words):
        pack(codes, group=int(str(more["group"])), scale=scale, zero_point=zero)
