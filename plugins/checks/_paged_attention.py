"""How a case of `paged_attention` is made: a step of sequences in a paged cache, and what must come out of it.

Whatever must not be read is poison: rows of the pools that no sequence sees, padding rows, entries of the block table
beyond a sequence's end and where a window has passed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from plugins.cuda.case import Case
from plugins.cuda.company import Company
from plugins.reference.attention_plan import Limits, make_plan
from plugins.reference.kv_write import MOST, Rotary, StaticScales, TokenScales, kv_write
from plugins.reference.paged_attention import attend_pools
from plugins.reference.rotary import rotary_tables

HALF, BFLOAT = torch.float16, torch.bfloat16
INT8, E4M3 = torch.int8, torch.float8_e4m3fn
TOLERANCE = {HALF: 1e-3, BFLOAT: 8e-3}
POOL_TOLERANCE = {INT8: 2e-2, E4M3: 6e-2}
PLAN_WORKERS = 5
"""Where the work list is the reference's: it must not depend on the device."""


@dataclass(frozen=True)
class Setup:
    """One call. sequences: (tokens in the cache, new tokens) each.

    pool: None is the queries' dtype; scales: 'head', 'one' or 'token'. tree: a random tree mask.
    write: new keys are given and written; else the pools have them. packed: query, key and value in one tensor.
    split: max_split_tokens. shared: (leader, tokens shared with it) of each sequence. plan: the work list is given.
    """

    sequences: tuple[tuple[int, int], ...]
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    value_dim: int = 64
    block_size: int = 16
    dtype: torch.dtype = HALF
    pool: torch.dtype | None = None
    scales: str = "head"
    window: int = -1
    softcap: float = 0.0
    scale: float = 0.0
    alibi: bool = False
    sinks: bool = False
    tree: bool = False
    rotary_dim: int = 0
    interleaved: bool = False
    norm: bool = False
    write: bool = True
    packed: bool = False
    padding: int = 0
    lse: bool = False
    chunk: int = 64
    split: int = 8
    shared: tuple[tuple[int, int], ...] = ()
    plan: bool = False

    @property
    def pool_dtype(self) -> torch.dtype:
        """dtype of the pools."""
        return self.pool or self.dtype

    @property
    def name(self) -> str:
        """The values that are not the default ones."""

        def text(value: object) -> str:
            return str(value).removeprefix("torch.").replace(" ", "")

        differing = (f for f in fields(self) if getattr(self, f.name) != f.default)
        return " ".join(f"{f.name}={text(getattr(self, f.name))}" for f in differing)

    @property
    def attributes(self) -> dict[str, float]:
        """The attributes of the call."""
        return {
            "num_heads": self.heads,
            "kv_num_heads": self.kv_heads,
            "scale": self.scale,
            "softcap": self.softcap,
            "do_rotary": float(self.rotary_dim > 0),
            "rotary_interleaved": float(self.interleaved),
            "local_window_size": self.window,
            "chunk": self.chunk,
            "max_split_tokens": self.split,
            "workers": PLAN_WORKERS if self.plan else 0,
        }


@dataclass(frozen=True)
class Pools:
    """Key and value pools, with scales where they are quantized."""

    key: Tensor
    value: Tensor
    scales: StaticScales | TokenScales | None

    def named(self) -> dict[str, Tensor]:
        """As tensors of the operator."""
        tensors = {"key_cache": self.key, "value_cache": self.value}
        if isinstance(self.scales, StaticScales):
            tensors |= {"k_scale": self.scales.key, "v_scale": self.scales.value}
        if isinstance(self.scales, TokenScales):
            tensors |= {"k_token_scale": self.scales.key, "v_token_scale": self.scales.value}
        return tensors


def poison(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """NaN, or where there is none the largest number."""
    if dtype == INT8:
        return torch.full(shape, 127, dtype=dtype)
    return torch.full(shape, torch.nan).to(dtype)


def empty_pools(setup: Setup, num_blocks: int, random: torch.Generator) -> Pools:
    """Pools full of poison; given scales fit normal numbers."""
    shape = (num_blocks, setup.block_size, setup.kv_heads)
    scales: StaticScales | TokenScales | None = None
    if setup.pool_dtype in MOST:
        if setup.scales == "token":
            scales = TokenScales(torch.full(shape, torch.nan), torch.full(shape, torch.nan))
        else:
            count = setup.kv_heads if setup.scales == "head" else 1
            key, value = (3 + 2 * torch.rand((2, count), generator=random)) / MOST[setup.pool_dtype]
            scales = StaticScales(key, value)
    return Pools(
        poison((*shape, setup.head_dim), setup.pool_dtype),
        poison((*shape, setup.value_dim), setup.pool_dtype),
        scales,
    )


def written(
    pools: Pools, key: Tensor, value: Tensor, slots: Tensor, **more: object
) -> tuple[Pools, Tensor | None]:
    """The pools after a write of rows, and the turned queries if there are any (see `kv_write`)."""
    done = kv_write(key, value, pools.key, pools.value, slots, scales=pools.scales, **more)  # type: ignore[arg-type]
    return Pools(done.key_cache, done.value_cache, done.token_scales or pools.scales), done.query


def block_tables(setup: Setup, random: torch.Generator) -> tuple[Tensor, int]:
    """[batch, max_blocks] of shuffled blocks, shared where prefixes are, -1 beyond each end; and how many blocks."""
    size = setup.block_size
    blocks_of = [-(-(past + new) // size) for past, new in setup.sequences]
    num_blocks = sum(blocks_of) + 3
    order = torch.randperm(num_blocks, generator=random).tolist()
    table = torch.full((len(blocks_of), max([*blocks_of, 1]) + 1), -1, dtype=torch.int32)
    for row, count in enumerate(blocks_of):
        table[row, :count] = torch.tensor([order.pop() for _ in range(count)], dtype=torch.int32)
    for row, (leader, tokens) in enumerate(setup.shared):
        table[row, : tokens // size] = table[leader, : tokens // size]
    return table, num_blocks


def slots_of(table: Tensor, size: int, row: int, positions: range) -> Tensor:
    """Slots of positions of one sequence, int32."""
    at = torch.tensor(list(positions), dtype=torch.int64)
    return (table[row, at // size] * size + at % size).int()


def random_rows(setup: Setup, count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Key and value rows [count, kv_heads, size]."""
    key = torch.randn((count, setup.kv_heads, setup.head_dim), generator=random)
    value = torch.randn((count, setup.kv_heads, setup.value_dim), generator=random)
    return key.to(setup.dtype), value.to(setup.dtype)


def tree_mask(setup: Setup, tokens: int, random: torch.Generator) -> Tensor:
    """bool [tokens, most new tokens]: each new token sees itself, and others at random."""
    most = max(new for _, new in setup.sequences)
    mask = torch.rand((tokens, most), generator=random) < 0.5
    start = 0
    for _, new in setup.sequences:
        mask[range(start, start + new), range(new)] = True
        start += new
    return mask


def plan_of(setup: Setup, tensors: dict[str, Tensor], tokens: int) -> Tensor:
    """The work list, by its reference."""
    batch, max_blocks = tensors["block_table"].shape
    limits = Limits(
        batch=batch,
        tokens=tokens,
        heads=setup.heads,
        kv_heads=setup.kv_heads,
        max_length=max_blocks * setup.block_size,
        pool_tokens=tensors["key_cache"].shape[0] * setup.block_size,
        window=setup.window,
        chunk=setup.chunk,
        max_split_tokens=setup.split,
        workers=PLAN_WORKERS,
    )
    return make_plan(
        limits,
        tensors["cumulative_sequence_length"].tolist(),
        tensors["past_seqlens"].tolist(),
        [leader for leader, _ in setup.shared] or None,
        [shared for _, shared in setup.shared] or None,
    )


def case_of(setup: Setup, random: torch.Generator, label: str = "") -> Case:
    """The call and, by the reference, what comes out of it."""
    table, num_blocks = block_tables(setup, random)
    pools = empty_pools(setup, num_blocks, random)
    slots, old_slots, positions = [], [], []
    for row, (past, new) in enumerate(setup.sequences):
        first = setup.shared[row][1] if setup.shared and setup.shared[row][0] != row else 0
        if setup.window >= 0 and new > 0:
            first = max(first, past + 1 - setup.window)
        old = range(min(first, past), past)  # of a shared prefix the leader's rows are enough
        old_slots.append(slots_of(table, setup.block_size, row, old))
        slots.append(slots_of(table, setup.block_size, row, range(past, past + new)))
        positions += list(range(past, past + new))
    all_old = torch.cat(old_slots)
    pools, _ = written(pools, *random_rows(setup, len(all_old), random), all_old)
    for row, (past, new) in enumerate(setup.sequences):
        if setup.window > 0 and new > 0:
            table[row, : max(0, past + 1 - setup.window) // setup.block_size] = -1
    live, tokens = len(positions), len(positions) + setup.padding
    query = torch.randn((tokens, setup.heads, setup.head_dim), generator=random).to(setup.dtype)
    key, value = random_rows(setup, tokens, random)
    for rows in (query, key, value):
        rows[live:] = torch.nan
    lengths = torch.tensor([0, *(new for _, new in setup.sequences)])
    tensors = {
        "cumulative_sequence_length": lengths.cumsum(0).int(),
        "past_seqlens": torch.tensor([past for past, _ in setup.sequences], dtype=torch.int32),
        "block_table": table,
    }
    more: dict[str, object] = {"cu_seqlens": tensors["cumulative_sequence_length"], "query": query}
    if setup.rotary_dim:
        cos, sin = rotary_tables(max([*positions, 0]) + 1, setup.rotary_dim)
        tensors |= {"cos_cache": cos, "sin_cache": sin}
        tensors["position_ids"] = torch.tensor(positions + [1 << 30] * setup.padding, dtype=torch.int32)
        more |= {"rotary": Rotary(cos, sin, setup.interleaved), "position_ids": tensors["position_ids"]}
    if setup.norm:
        for name in ("q", "k"):
            weight = torch.randn(setup.head_dim, generator=random).to(setup.dtype)
            tensors[f"{name}_norm_weight"] = weight
            more["query_norm_weight" if name == "q" else "key_norm_weight"] = weight
    new_slots = torch.cat([*slots, torch.full((setup.padding,), 1 << 30, dtype=torch.int32)])
    after, turned = written(pools, key, value, new_slots, **more)
    assert turned is not None
    if setup.sinks:
        tensors["head_sink"] = torch.randn(setup.heads, generator=random).to(setup.dtype)
    if setup.alibi:
        tensors["alibi_slopes"] = torch.rand(setup.heads, generator=random) * 0.1
    if setup.tree:
        tensors["tree_mask"] = tree_mask(setup, tokens, random)
    if setup.shared:
        tensors["prefix_leader"] = torch.tensor([leader for leader, _ in setup.shared], dtype=torch.int32)
        tensors["prefix_lens"] = torch.tensor([shared for _, shared in setup.shared], dtype=torch.int32)
    if setup.write:
        tensors["slot_mapping"] = new_slots
        columns = {"query": query.flatten(1), "key": key.flatten(1), "value": value.flatten(1)}
        tensors |= {"query": torch.cat([*columns.values()], dim=1)} if setup.packed else columns
        tensors |= pools.named()
    else:
        tensors |= {"query": query.flatten(1), **after.named()}
    if setup.plan:
        tensors["attention_metadata"] = plan_of(setup, tensors, tokens)
        tensors.pop("prefix_leader", None)
        tensors.pop("prefix_lens", None)
    attended = attend_pools(
        turned,
        after.key,
        after.value,
        tensors["cumulative_sequence_length"],
        tensors["past_seqlens"],
        table,
        key_scale=after.scales.key if after.scales else None,
        value_scale=after.scales.value if after.scales else None,
        head_sink=tensors.get("head_sink"),
        alibi_slopes=tensors.get("alibi_slopes"),
        tree_mask=tensors.get("tree_mask"),
        scale=setup.scale,
        softcap=setup.softcap,
        local_window_size=setup.window,
    )
    expected = {
        "output": attended.output.flatten(1).to(setup.dtype),
        "key_cache": after.key,
        "value_cache": after.value,
    }
    if isinstance(after.scales, TokenScales):
        expected |= {"k_token_scale": after.scales.key, "v_token_scale": after.scales.value}
    if setup.lse:
        expected["log_sum_exp"] = attended.log_sum_exp
    tolerances = {
        "output": max(TOLERANCE[setup.dtype], POOL_TOLERANCE.get(setup.pool_dtype, 0.0)),
        "log_sum_exp": 1e-3,
    }
    if setup.norm:
        tolerances |= {"key_cache": tolerances["output"], "k_token_scale": 1e-5}
    return Case(
        label + setup.name, "paged_attention", tensors, expected, setup.attributes, tolerances=tolerances
    )


def alone(case: Case, setup: Setup, row: int) -> Case:
    """The request `row` of a case by itself: its rows of the step, the same pools."""
    begin, end = (int(x) for x in case.tensors["cumulative_sequence_length"][row : row + 2])
    tensors = dict(case.tensors)
    for name in ("query", "key", "value", "slot_mapping", "position_ids", "tree_mask"):
        if name in tensors:
            tensors[name] = tensors[name][begin:end].contiguous()
    for name in ("past_seqlens", "block_table"):
        tensors[name] = tensors[name][row : row + 1].contiguous()
    tensors["cumulative_sequence_length"] = torch.tensor([0, end - begin], dtype=torch.int32)
    for name in ("prefix_leader", "prefix_lens"):
        tensors.pop(name, None)
    expected = {
        name: value[begin:end] if name in ("output", "log_sum_exp") else value
        for name, value in case.expected.items()
    }
    return replace(case, name=f"{case.name} alone {row}", tensors=tensors, expected=expected)


def companies_of(setup: Setup, random: torch.Generator, rows: Sequence[int]) -> Iterator[Company]:
    """Requests of a step alone and in company. Write is off: alone the others' new keys would be missing."""
    among = case_of(replace(setup, write=False), random)
    for row in rows:
        begin, end = (int(x) for x in among.tensors["cumulative_sequence_length"][row : row + 2])
        places = torch.arange(begin, end)
        here = torch.arange(end - begin)
        yield Company(
            f"{setup.name} request {row}", alone(among, setup, row), among, {"output": (here, places)}
        )
