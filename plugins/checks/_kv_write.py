"""How a case of `kv_write` is made: new rows, pools and tables, and by the reference what must come out.

Whatever must not be read is poison: padding, rows without a slot, what lies between packed rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from plugins.cuda.case import Case
from plugins.reference.kv_write import MOST, Rotary, StaticScales, TokenScales, kv_write
from plugins.reference.rotary import rotary_tables

HALF, BFLOAT, FLOAT = torch.float16, torch.bfloat16, torch.float32
INT8, E4M3 = torch.int8, torch.float8_e4m3fn

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
