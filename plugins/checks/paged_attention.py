"""Cases of `paged_attention`: mixes of decode and prefill, masks, pools, head sizes, shared prefixes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from plugins.cuda.case import Case, Scale
from plugins.cuda.company import Company

from ._paged_attention import BFLOAT, E4M3, HALF, INT8, Setup, case_of, companies_of

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
