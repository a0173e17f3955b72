"""Cases of `kv_write`: sizes, dtypes, rotary forms, scales, strides, padding."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from plugins.cuda.case import Case, Scale
from plugins.reference.kv_write import MOST, Rotary, StaticScales, TokenScales, kv_write
from plugins.reference.rotary import rotary_tables

POISON_INDEX = 1 << 30
"""A slot or position of rows that must not be looked at."""

NORM_TOLERANCE = {
    torch.float32: 1e-5,
    torch.float16: 1e-3,
    torch.bfloat16: 8e-3,
    torch.int8: 2e-2,
    torch.float8_e4m3fn: 6e-2,
}
"""With a norm the sum's order is the kernel's own; without it all bits are equal."""


@dataclass(frozen=True)
class Setup:
    """One call. rotary_dim 0: no tables. scales: 'head', 'one' (for all heads) or 'token', for quantized pools.

    padding: rows beyond cu_seqlens[-1], full of poison; unwritten: rows with slot -1, whose keys and values are poison.
    heads: of the query, 0: none. packed: query, key and value are views of one tensor of rows.
    """

    tokens: int = 5
    kv_heads: int = 2
    key_dim: int = 64
    value_dim: int = 64
    block_size: int = 16
    dtype: torch.dtype = torch.float16
    pool: torch.dtype | None = None
    rotary_dim: int = 0
    interleaved: bool = False
    float_table: bool = True
    scales: str = "head"
    heads: int = 0
    packed: bool = False
    padding: int = 0
    unwritten: int = 0
    norm: bool = False

    @property
    def pool_dtype(self) -> torch.dtype:
        """dtype of the pools; that of the new rows unless said otherwise."""
        return self.pool or self.dtype

    @property
    def name(self) -> str:
        """The values that are not the default ones."""

        def text(value: object) -> str:
            return str(value).removeprefix("torch.")

        fields = self.__dataclass_fields__.values()
        return "-".join(
            f"{f.name}={text(getattr(self, f.name))}" for f in fields if getattr(self, f.name) != f.default
        )


def random(generator: torch.Generator, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Normal numbers, in pools of 8 bits random bytes that are no NaN."""
    if dtype in MOST:
        raw = torch.randint(0, 127, shape, dtype=torch.uint8, generator=generator)
        return raw.view(dtype)
    return torch.randn(shape, generator=generator).to(dtype)


def rows_of(setup: Setup, generator: torch.Generator) -> dict[str, Tensor]:
    """query (if there are heads), key and value; packed ones lie in rows that are poison between and around them."""
    sizes = {
        "query": (setup.heads, setup.key_dim),
        "key": (setup.kv_heads, setup.key_dim),
        "value": (setup.kv_heads, setup.value_dim),
    }
    made = {}
    for name, (heads, size) in sizes.items():
        if heads == 0:
            continue
        rows = random(generator, (setup.tokens, heads, size), setup.dtype)
        if setup.packed:
            gap = 12  # elements: strides of 8 bytes, in 16-bit rows of which all else allows 16
            wide = torch.full((setup.tokens, 2, heads, size + gap), torch.nan, dtype=setup.dtype)
            view = wide[:, 0, :, :size]
            view.copy_(rows)
            rows = view
        made[name] = rows
    return made


def scale_tensors(
    setup: Setup, generator: torch.Generator, num_blocks: int
) -> StaticScales | TokenScales | None:
    """Scales that fit normal numbers; pools of row scales start with other numbers."""
    if setup.pool_dtype not in MOST:
        return None
    if setup.scales == "token":
        shape = (num_blocks, setup.block_size, setup.kv_heads)
        return TokenScales(torch.rand(shape, generator=generator), torch.rand(shape, generator=generator))
    count = setup.kv_heads if setup.scales == "head" else 1
    key, value = (2 + torch.rand((2, count), generator=generator)) / MOST[setup.pool_dtype]
    return StaticScales(key, value)


def case_of(setup: Setup, generator: torch.Generator, label: str = "") -> Case:
    """The call and, by the reference, what comes out of it."""
    tensors = rows_of(setup, generator)
    live = setup.tokens - setup.padding
    num_blocks = -(-setup.tokens // setup.block_size) + 2
    shape = (num_blocks, setup.block_size, setup.kv_heads)
    for name, size in (("key", setup.key_dim), ("value", setup.value_dim)):
        tensors[f"{name}_cache"] = random(generator, (*shape, size), setup.pool_dtype)
    order = torch.randperm(num_blocks * setup.block_size, generator=generator)
    slots = order[: setup.tokens].int()
    skipped = torch.randperm(live, generator=generator)[: setup.unwritten]
    slots[skipped] = -1
    poisoned = torch.cat([skipped, torch.arange(live, setup.tokens)])
    for name in ("key", "value"):
        tensors[name][poisoned] = torch.nan
    if setup.padding:
        slots[live:] = POISON_INDEX
        tensors["cu_seqlens"] = torch.tensor([0, live // 2, live], dtype=torch.int32)
        if setup.heads:
            tensors["query"][live:] = torch.nan
    tensors["slot_mapping"] = slots

    rotary = None
    if setup.rotary_dim:
        positions = torch.randint(0, 40, (setup.tokens,), dtype=torch.int32, generator=generator)
        positions[:2] = torch.tensor([39, 0], dtype=torch.int32)[: setup.tokens]  # both ends of the tables
        positions[live:] = POISON_INDEX
        if not setup.heads:
            positions[skipped] = POISON_INDEX
        cos, sin = rotary_tables(40, setup.rotary_dim)
        if not setup.float_table:
            cos, sin = cos.to(setup.dtype), sin.to(setup.dtype)
        rotary = Rotary(cos, sin, setup.interleaved)
        tensors |= {"cos": cos, "sin": sin, "position_ids": positions}
    if setup.norm:
        for name in ("key", "query") if setup.heads else ("key",):
            tensors[f"{name}_norm_weight"] = random(generator, (setup.key_dim,), setup.dtype)
    scales = scale_tensors(setup, generator, num_blocks)
    kind = "token_scale" if isinstance(scales, TokenScales) else "scale"
    if scales is not None:
        tensors |= {f"key_{kind}": scales.key, f"value_{kind}": scales.value}
    if setup.heads:
        tensors["query_out"] = random(generator, (setup.tokens, setup.heads, setup.key_dim), setup.dtype)

    written = kv_write(
        tensors["key"],
        tensors["value"],
        tensors["key_cache"],
        tensors["value_cache"],
        slots,
        cu_seqlens=tensors.get("cu_seqlens"),
        position_ids=tensors.get("position_ids"),
        rotary=rotary,
        scales=scales,
        key_norm_weight=tensors.get("key_norm_weight"),
        query_norm_weight=tensors.get("query_norm_weight"),
        epsilon=1e-5,
        query=tensors.get("query"),
        query_out=tensors.get("query_out"),
    )
    expected = {"key_cache": written.key_cache, "value_cache": written.value_cache}
    tolerances = {}
    if written.token_scales is not None:
        expected["key_token_scale"] = written.token_scales.key
        expected["value_token_scale"] = written.token_scales.value
    if written.query is not None:
        expected["query_out"] = written.query
    if setup.norm:
        tolerances = {
            "key_cache": NORM_TOLERANCE[setup.pool_dtype],
            "query_out": NORM_TOLERANCE[setup.dtype],
            "key_token_scale": 1e-5,
        }
    attributes = {"rotary_interleaved": float(setup.interleaved), "epsilon": 1e-5}
    return Case(label + setup.name, "kv_write", tensors, expected, attributes, tolerances=tolerances)


HALF, BFLOAT, FLOAT = torch.float16, torch.bfloat16, torch.float32
INT8, E4M3 = torch.int8, torch.float8_e4m3fn

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
