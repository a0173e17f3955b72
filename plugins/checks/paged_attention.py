"""Cases of `paged_attention`: mixes of decode and prefill, masks, pools, head sizes, shared prefixes.

Whatever must not be read is poison: rows of the pools that no sequence sees, padding rows, entries of the block table
beyond a sequence's end and where a window has passed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from plugins.cuda.case import Case, Scale
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


QUICK = (
    # Decode of lengths around tiles and chunks, an empty request, a short prefill, padding.
    Setup(((0, 1), (16, 1), (53, 1), (96, 1), (5, 0), (129, 1), (3, 17)), padding=2, lse=True),
    Setup(((129, 2), (40, 54)), heads=3, kv_heads=1, rotary_dim=64, sinks=True, padding=1, packed=True),
    Setup(
        ((140, 1), (100, 9), (30, 40)),
        window=37,
        alibi=True,
        softcap=20.0,
        block_size=32,
        write=False,
        lse=True,
    ),
    Setup(((130, 6), (20, 4)), tree=True, heads=2, kv_heads=1, dtype=BFLOAT),
    Setup(
        ((130, 1), (150, 1), (140, 3), (70, 1), (200, 1)),
        heads=8,
        kv_heads=2,
        alibi=True,
        shared=((0, 0), (0, 128), (0, 128), (3, 0), (0, 64)),
    ),
    Setup(((130, 1), (61, 1)), pool=INT8, scales="token", heads=6, kv_heads=2, head_dim=56, value_dim=40),
    Setup(((90, 3), (64, 20)), pool=INT8, heads=2, kv_heads=2, block_size=64),
    Setup(((90, 3), (64, 20)), pool=E4M3, heads=2, kv_heads=2, block_size=64, dtype=BFLOAT),
)
SMALL = (
    *QUICK,
    Setup(((0, 1),), heads=1, kv_heads=1),
    Setup(((0, 130),), heads=2, kv_heads=2, dtype=BFLOAT, lse=True),
    Setup(
        ((17, 97), (0, 54)), heads=6, kv_heads=2, block_size=128, sinks=True, lse=True, packed=True, padding=3
    ),
    Setup(((54, 1), (130, 5)), heads=40, kv_heads=1, block_size=256, scale=0.3),
    Setup(((97, 1), (200, 3), (20, 30)), window=16, dtype=BFLOAT, rotary_dim=32, interleaved=True, padding=2),
    Setup(((70, 1), (140, 1)), window=1, sinks=True),
    Setup(((70, 1), (140, 2)), window=0),
    Setup(((300, 1), (511, 1), (17, 1)), chunk=128, alibi=True, lse=True),
    Setup(((97, 1), (33, 40)), head_dim=128, value_dim=128, heads=8, kv_heads=2, rotary_dim=128, padding=1),
    Setup(((97, 1), (33, 20)), head_dim=96, value_dim=80, heads=2, kv_heads=1, dtype=BFLOAT, softcap=30.0),
    Setup(((97, 1), (33, 20)), head_dim=192, value_dim=128, heads=2, kv_heads=1, block_size=32, lse=True),
    Setup(((130, 1), (10, 17)), head_dim=256, value_dim=256, heads=2, kv_heads=1, dtype=BFLOAT, sinks=True),
    Setup(((97, 1), (40, 20)), head_dim=16, value_dim=32, heads=3, kv_heads=3, norm=True, rotary_dim=16),
    Setup(((97, 1), (40, 33)), pool=INT8, dtype=BFLOAT, scales="one", lse=True, padding=1),
    Setup(((97, 1), (40, 33)), pool=E4M3, scales="token", rotary_dim=64, packed=True, window=70),
    Setup(((130, 1), (20, 17)), pool=E4M3, dtype=BFLOAT, head_dim=128, value_dim=128, heads=4, kv_heads=1),
    Setup(
        ((130, 1), (20, 17)), pool=INT8, head_dim=128, value_dim=64, heads=4, kv_heads=1, sinks=True, lse=True
    ),
    Setup(((70, 1), (20, 17)), pool=INT8, head_dim=192, value_dim=256, heads=2, kv_heads=1, scales="token"),
    Setup(
        ((90, 7), (140, 8), (0, 6)), tree=True, heads=8, kv_heads=1, dtype=BFLOAT, rotary_dim=64, pool=E4M3
    ),
    Setup(((129, 20),), split=32, tree=True, lse=True),
    Setup(((129, 1), (60, 20), (250, 2)), plan=True, rotary_dim=32, padding=1),
    Setup(((97, 1), (20, 5)), write=False, rotary_dim=64, pool=INT8, norm=True),
    Setup(((97, 1), (40, 20)), pool=INT8, scales="token", head_dim=72, value_dim=120, heads=3, kv_heads=1),
    Setup(((1000, 1),) * 3, heads=2, kv_heads=1, chunk=64, shared=((0, 0), (0, 960), (0, 960)), lse=True),
    Setup(
        ((130, 1), (150, 0), (140, 2), (180, 1), (200, 1), (128, 60)),
        heads=8,
        kv_heads=1,
        block_size=32,
        dtype=BFLOAT,
        sinks=True,
        lse=True,
        padding=1,
        shared=((1, 128), (1, 0), (1, 128), (1, 128), (4, 0), (1, 128)),
    ),
    Setup(
        ((260, 1),) * 5,
        pool=INT8,
        scales="token",
        shared=((0, 0), (0, 256), (0, 192), (0, 256), (0, 192)),
        alibi=True,
    ),
)


def full() -> Iterator[Setup]:
    """Lengths, block sizes, head sizes and masks of real models."""
    lengths = (1, 17, 54, 97, 512, 1023, 4097)
    decode = tuple((length - 1, 1) for length in lengths)
    mixed = (*decode, (0, 97), (512, 54), (1023, 512), (300, 0), (4096, 4))
    dims = ((64, 64), (128, 128), (256, 256), (80, 80), (192, 128), (32, 32))
    pools: tuple[tuple[torch.dtype | None, str], ...] = (
        (None, "head"),
        (INT8, "head"),
        (INT8, "token"),
        (E4M3, "one"),
        (E4M3, "token"),
    )
    forms = list(itertools.product(dims, (HALF, BFLOAT), pools))[::2]
    for i, ((head_dim, value_dim), dtype, (pool, scales)) in enumerate(forms):
        heads, kv_heads = ((32, 8), (8, 8), (8, 1), (28, 4), (24, 2))[i % 5]
        yield Setup(
            (decode, mixed)[i // 2 % 2],
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            value_dim=value_dim,
            block_size=(16, 32, 64, 128, 256)[i // 3 % 5],
            dtype=dtype,
            pool=pool,
            scales=scales,
            window=(-1, 200, -1)[i % 3],
            softcap=(0.0, 30.0)[i // 4 % 2],
            alibi=i // 5 % 3 == 0,
            sinks=i % 4 == 1,
            rotary_dim=head_dim if i % 3 == 0 else 0,
            interleaved=i % 2 == 1,
            packed=head_dim == value_dim and i % 4 == 0,
            padding=i % 3,
            lse=i % 2 == 0,
            chunk=(512, 256, 64)[i % 3],
        )
    yield Setup(((32767, 1),), heads=32, kv_heads=8, head_dim=128, value_dim=128, chunk=512)
    lengths_256 = tuple(((i * 7919) % 4096, 1) for i in range(256))
    yield Setup(lengths_256, heads=8, kv_heads=2, head_dim=128, value_dim=128, chunk=512, dtype=BFLOAT)
    shared = tuple((0, 2048) for _ in range(64))
    yield Setup(
        tuple((2048 + 13 * i, 1) for i in range(64)),
        heads=32,
        kv_heads=8,
        head_dim=128,
        value_dim=128,
        chunk=512,
        shared=shared,
        lse=True,
    )


BAD = (
    ("multiple of kv_num_heads", {"num_heads": 3.0}),
    ("chunk is 96", {"chunk": 96.0}),
    ("kv_num_heads is 4", {"kv_num_heads": 4.0}),
    ("needs cos_cache", {"do_rotary": 1.0}),
)


def refused(random: torch.Generator) -> Iterator[Case]:
    """Calls that must end in words."""
    good = case_of(Setup(((5, 1), (20, 3))), random)
    for words, attributes in BAD:
        yield replace(good, name=words, attributes={**good.attributes, **attributes}, error=words)
    bad: dict[str, dict[str, Tensor | None]] = {
        "without slot_mapping": {"slot_mapping": None},
        "given together": {"value": None},
        "query has 120 columns": {"query": good.tensors["query"][:, :120].contiguous()},
        "stride 260": {"query": torch.cat([good.tensors["query"], good.tensors["query"][:, :4]], 1)[:, :256]},
        "block_size is 24": {
            name: torch.zeros((4, 24, 2, 64), dtype=HALF) for name in ("key_cache", "value_cache")
        },
        "head_dim is 260": {
            "key_cache": torch.zeros((6, 16, 2, 260), dtype=HALF),
            "query": torch.zeros((4, 1040), dtype=HALF),
            "key": torch.zeros((4, 520), dtype=HALF),
        },
        "need either k_scale": {
            name: torch.zeros((4, 16, 2, 64), dtype=INT8) for name in ("key_cache", "value_cache")
        },
        "attention_metadata has 8 elements": {"attention_metadata": torch.zeros(8, dtype=torch.int32)},
    }
    for words, changes in bad.items():
        tensors = {k: v for k, v in {**good.tensors, **changes}.items() if v is not None}
        yield replace(good, name=words, tensors=tensors, error=words)


def cases(scale: Scale, seed: int) -> Iterator[Case]:
    """See `plugins.checks`."""
    random = torch.Generator().manual_seed(seed)
    for setup in {Scale.QUICK: QUICK, Scale.SMALL: SMALL, Scale.FULL: (*SMALL, *full())}[scale]:
        yield case_of(setup, random)
    if scale != Scale.QUICK:
        yield from refused(random)


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


def companies(seed: int, requests: int) -> Iterator[Company]:
    """Requests alone and among `requests` - 1 others, with and without shared prefixes."""
    random = torch.Generator().manual_seed(seed)
    lengths = tuple((int(n), 1) for n in torch.randint(1, 1200, (requests - 2,), generator=random))
    plain = Setup(
        (*lengths, (700, 4), (333, 97)), heads=8, kv_heads=2, head_dim=128, value_dim=128, chunk=256
    )
    picked = (0, requests // 2, requests - 2, requests - 1)
    yield from companies_of(plain, random, picked)
    yield from companies_of(
        replace(plain, dtype=BFLOAT, pool=E4M3, scales="token", sinks=True), random, picked
    )
    leader = next(i for i, (n, _) in enumerate(plain.sequences) if n >= 512)
    shared = tuple((leader, 512) if n >= 512 else (i, 0) for i, (n, _) in enumerate(plain.sequences))
    sharing = [i for i, (owner, _) in enumerate(shared) if owner == leader]
    yield from companies_of(replace(plain, shared=shared), random, (sharing[0], sharing[-1]))
