"""Cases of `kv_write`: sizes, dtypes, rotary forms, scales, strides, padding."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from plugins.cuda.case import Case, Scale
from plugins.reference.kv_write import Rotary, StaticScales, TokenScales, kv_write

from ._kv_write import BFLOAT, E4M3, FLOAT, HALF, INT8, Setup, case_of

QUICK = (
    Setup(rotary_dim=64, unwritten=2),
    Setup(kv_heads=3, key_dim=80, value_dim=40, rotary_dim=32, padding=2, heads=4, packed=True),
    Setup(
        key_dim=72, value_dim=72, rotary_dim=72, pool=INT8, heads=3, float_table=False, padding=1, unwritten=1
    ),
    Setup(key_dim=96, value_dim=64, rotary_dim=40, interleaved=True, pool=INT8, scales="token", unwritten=1),
    Setup(pool=E4M3, rotary_dim=24, interleaved=True, float_table=False, packed=True),
    Setup(tokens=17, block_size=32, pool=E4M3, scales="token", rotary_dim=24, heads=2, unwritten=3),
    Setup(dtype=BFLOAT, kv_heads=1, pool=E4M3, scales="one"),
    Setup(norm=True, rotary_dim=64, heads=3, key_dim=80, value_dim=64),
    Setup(dtype=FLOAT, key_dim=36, value_dim=20, rotary_dim=20, heads=1),
    Setup(key_dim=7, value_dim=5, rotary_dim=6, kv_heads=3, heads=2),
)
SMALL = (
    *QUICK,
    Setup(tokens=1),
    Setup(tokens=0),
    Setup(tokens=1, kv_heads=1, dtype=BFLOAT, rotary_dim=64, heads=1),
    Setup(
        tokens=17,
        key_dim=128,
        value_dim=128,
        rotary_dim=128,
        heads=8,
        packed=True,
        block_size=32,
        dtype=BFLOAT,
    ),
    Setup(tokens=97, key_dim=128, value_dim=128, rotary_dim=128, interleaved=True, pool=E4M3, scales="token"),
    Setup(
        tokens=300, key_dim=64, value_dim=64, rotary_dim=16, heads=2, padding=20, unwritten=7, block_size=128
    ),
    Setup(
        tokens=17, key_dim=192, value_dim=128, rotary_dim=64, dtype=BFLOAT, pool=INT8, heads=2, packed=True
    ),
    Setup(tokens=17, key_dim=256, value_dim=256, rotary_dim=256, block_size=256, pool=INT8, scales="token"),
    Setup(tokens=17, key_dim=512, value_dim=512, rotary_dim=64, interleaved=True, block_size=64),
    Setup(key_dim=7, value_dim=5, rotary_dim=4, interleaved=True, kv_heads=3, pool=INT8),
    Setup(key_dim=20, value_dim=12, rotary_dim=20, pool=E4M3, scales="token", dtype=BFLOAT),
    Setup(dtype=FLOAT, key_dim=80, value_dim=80, rotary_dim=80, pool=HALF, heads=2),
    Setup(dtype=FLOAT, key_dim=80, value_dim=80, rotary_dim=32, interleaved=True, pool=BFLOAT),
    Setup(dtype=FLOAT, pool=INT8, scales="token", rotary_dim=64),
    Setup(dtype=FLOAT, pool=E4M3, heads=5, kv_heads=5, rotary_dim=64, packed=True),
    Setup(norm=True, pool=INT8, scales="token", dtype=BFLOAT, rotary_dim=64, interleaved=True),
    Setup(norm=True, pool=E4M3, key_dim=128, value_dim=64, heads=4, packed=True, tokens=17),
)


def full() -> Iterator[Setup]:
    """All head sizes with all dtypes and both rotary forms; the other values go round."""
    dims = ((64, 64), (72, 72), (80, 80), (96, 96), (128, 128), (192, 128), (256, 256), (512, 512))
    pools: tuple[tuple[torch.dtype | None, str], ...] = (
        (None, "head"),
        (INT8, "head"),
        (INT8, "token"),
        (E4M3, "one"),
        (E4M3, "token"),
    )
    forms = itertools.product(dims, (HALF, BFLOAT, FLOAT), pools, (False, True))
    for i, ((key_dim, value_dim), dtype, (pool, scales), interleaved) in enumerate(forms):
        tokens = (1, 17, 97, 300, 1023, 4097)[i * 5 // 3 % 6]
        yield Setup(
            tokens=tokens,
            kv_heads=(1, 2, 3, 8)[i // 2 % 4],
            key_dim=key_dim,
            value_dim=value_dim,
            block_size=(16, 32, 64, 128, 256)[i // 3 % 5],
            dtype=dtype,
            pool=pool,
            scales=scales,
            rotary_dim=(key_dim, key_dim // 4 * 2, 0)[i // 2 % 3],
            interleaved=interleaved,
            float_table=i // 7 % 2 == 0,
            heads=(0, 8, 0, 5)[i // 5 % 4],
            packed=i // 4 % 2 == 0,
            padding=min(i % 3, tokens - 1),
            unwritten=min(i % 4, tokens // 2),
        )


def adversarial(generator: torch.Generator) -> Iterator[Case]:
    """Rows whose scale is at an edge, ties of rounding, numbers beyond what a pool holds."""
    for pool, scales in itertools.product((INT8, E4M3), ("token", "one")):
        setup = Setup(tokens=8, kv_heads=1, pool=pool, scales=scales, dtype=FLOAT)
        case = case_of(setup, generator, "edges ")
        key, value = case.tensors["key"], case.tensors["value"]
        key[0], value[0] = 0.0, -0.0
        key[1], value[1] = 1e-39, 1e-44  # scales that no float32 can be divided by
        key[2], value[2] = 1e30, -1e30
        steps = torch.arange(64, dtype=torch.float32)
        key[3, 0], value[3, 0] = (steps - 32) / 2, (steps * 8 + 4) * 1.0
        key[4, 0, 5], value[4, 0, 63] = 1e4, -1e4
        key[5, 0], value[5, 0] = 2.0 ** -(steps / 4), -(2.0 ** -(steps / 4))
        scale: StaticScales | TokenScales
        if scales == "one":
            one = torch.ones(1)
            scale = StaticScales(one, one * 0.5)
            tensors = {**case.tensors, "key_scale": scale.key, "value_scale": scale.value}
        else:
            scale = TokenScales(case.tensors["key_token_scale"], case.tensors["value_token_scale"])
            tensors = dict(case.tensors)
        want = kv_write(
            key,
            value,
            case.tensors["key_cache"],
            case.tensors["value_cache"],
            case.tensors["slot_mapping"],
            scales=scale,
        )
        expected = {"key_cache": want.key_cache, "value_cache": want.value_cache}
        if want.token_scales is not None:
            expected["key_token_scale"] = want.token_scales.key
            expected["value_token_scale"] = want.token_scales.value
        yield replace(case, tensors=tensors, expected=expected)


def tiny(generator: torch.Generator) -> Case:
    """Tables so small that the scales of all turned rows cannot be divided by."""
    case = case_of(Setup(pool=INT8, scales="token", rotary_dim=64), generator, "tiny ")
    tables = Rotary(case.tensors["cos"] * 1e-38, case.tensors["sin"] * 1e-38)
    want = kv_write(
        *(case.tensors[name] for name in ("key", "value", "key_cache", "value_cache", "slot_mapping")),
        position_ids=case.tensors["position_ids"],
        rotary=tables,
        scales=TokenScales(case.tensors["key_token_scale"], case.tensors["value_token_scale"]),
    )
    assert want.token_scales is not None
    expected = {
        "key_cache": want.key_cache,
        "value_cache": want.value_cache,
        "key_token_scale": want.token_scales.key,
        "value_token_scale": want.token_scales.value,
    }
    return replace(case, tensors={**case.tensors, "cos": tables.cos, "sin": tables.sin}, expected=expected)


def cases(scale: Scale, seed: int) -> Iterator[Case]:
    """See `plugins.checks`."""
    generator = torch.Generator().manual_seed(seed)
    for setup in {Scale.QUICK: QUICK, Scale.SMALL: SMALL, Scale.FULL: (*SMALL, *full())}[scale]:
        yield case_of(setup, generator)
    yield from adversarial(generator)
    yield tiny(generator)
    if scale is not Scale.QUICK:
        yield from refused(generator)


def refused(generator: torch.Generator) -> Iterator[Case]:
    """Calls that are turned down in words."""
    half = case_of(Setup(rotary_dim=32, heads=2), generator)
    int8 = case_of(Setup(pool=INT8), generator)
    wide = torch.zeros(5, 2, 520, dtype=HALF)
    wide_pool = torch.zeros(3, 16, 2, 520, dtype=HALF)
    many = torch.zeros(40, 33)
    absent = {"position_ids": None}
    by_token = {
        f"{name}_token_scale": torch.zeros(int8.tensors["key_cache"].shape[:3]) for name in ("key", "value")
    }
    for words, case, changed in (
        ("key_dim is 520; allowed are 1 to 512", half, {"key": wide, "key_cache": wide_pool,
         "query": wide, "query_out": wide}),
        ("rotary_dim is 66; it must be even and at most key_dim, 64", half, {"cos": many, "sin": many}),
        ("cos and sin are given without position_ids", half, absent),
        ("cos and sin must be given together", half, {"sin": None}),
        ("cos is bfloat16; allowed are float32 and key's type", half,
         {"cos": half.tensors["cos"].bfloat16(), "sin": half.tensors["sin"].bfloat16()}),
        ("query and query_out must be given together", half, {"query": None}),
        ("query_norm_weight is given without query", half,
         {"query": None, "query_out": None, "query_norm_weight": torch.ones(64, dtype=HALF)}),
        ("keys of float16 cannot go to pools of bfloat16", half,
         {name: half.tensors[name].bfloat16() for name in ("key_cache", "value_cache")}),
        ("scales are given, but pools of float16 are not quantized", half, {"key_scale": torch.ones(1)}),
        ("pools of int8 need either key_scale and value_scale or", int8, {"value_scale": None}),
        ("pools of int8 need either key_scale and value_scale or", int8, by_token),
        ("key has stride 2 on axis 2; it must be 1", half, {"key": torch.zeros(5, 2, 128, dtype=HALF)[..., ::2]}),
        ("axis 2 must be kv_heads, and kv_heads is 2", half,
         {"key_cache": torch.zeros(3, 16, 3, 64, dtype=HALF)}),
        ("slot_mapping is int64; allowed: int32", half, {"slot_mapping": torch.zeros(5, dtype=torch.int64)}),
        ("axis 0 must be kv_heads, and kv_heads is 2", int8, {"key_scale": torch.ones(3)}),
        ("value is a null pointer", half, {"value": null(half.tensors["value"])}),
    ):  # fmt: skip
        tensors = {k: v for k, v in {**case.tensors, **changed}.items() if v is not None}
        expected = {k: v for k, v in case.expected.items() if k in tensors}
        name = f"refused: {words} ({', '.join(changed)})"
        yield Case(name, "kv_write", tensors, expected, case.attributes, error=words)


def null(tensor: Tensor) -> Tensor:
    """A tensor of this shape that the operator gets without an address."""
    copy = tensor.clone()
    copy.null_address = True  # type: ignore[attr-defined]
    return copy
