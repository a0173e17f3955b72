"""Cases of `block_copy`: within pools and between pools, strides, skipped and refused pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plugins.cuda.case import Case, Scale
from plugins.reference.block_copy import block_copy


@dataclass(frozen=True)
class Setup:
    """One call. apart: from other pools than those written (swap), which have `source_blocks` blocks.

    gap: bytes of poison between blocks and between pools (a stack that holds other things too).
    """

    name: str
    pairs: Sequence[tuple[int, int]]
    pools: int = 2
    blocks: int = 12
    block_bytes: int = 64
    apart: bool = False
    source_blocks: int = 7
    gap: int = 0
    thread_blocks: int = 2


def pools_of(setup: Setup, blocks: int, generator: torch.Generator) -> Tensor:
    """Random bytes [pools, blocks, block_bytes], with gaps where asked for."""
    pitch = setup.block_bytes + setup.gap
    wide = torch.randint(
        0, 256, (setup.pools, blocks + (setup.gap > 0), pitch), dtype=torch.uint8, generator=generator
    )
    return wide[:, :blocks, : setup.block_bytes]


def case_of(setup: Setup, generator: torch.Generator) -> Case:
    """The call and, by the reference, what comes out of it; `refused` goes on from a number."""
    destination = pools_of(setup, setup.blocks, generator)
    source = pools_of(setup, setup.source_blocks, generator) if setup.apart else None
    pairs = torch.tensor(setup.pairs, dtype=torch.int32).reshape(-1, 2)
    written, refused = block_copy(source, destination, pairs)
    tensors = {
        "destination": destination,
        "block_pairs": pairs,
        "refused": torch.tensor([5], dtype=torch.int32),
    }
    if source is not None:
        tensors["source"] = source
    expected = {"destination": written, "refused": torch.tensor([5 + refused], dtype=torch.int32)}
    return Case(setup.name, "block_copy", tensors, expected, {"thread_blocks": float(setup.thread_blocks)})


FORK = ((0, 9), (0, 10), (3, 11))
"""Copy on write: one block to several others."""

SETUPS = (
    Setup("fork", FORK, thread_blocks=0),
    Setup("skipped pairs", ((-1, 9), (4, 9), (0, -1), (5, -1), (2, 8), (-1, -1), (-7, -7), (1, 10))),
    Setup("nothing", ()),
    Setup("one pool", FORK, pools=1, block_bytes=16),
    Setup("strided", FORK, pools=3, gap=32),
    Setup("swap out", ((6, 0), (2, 11), (3, 5)), apart=True),
    Setup("swap in, the same numbers on both sides", ((5, 6), (6, 5), (4, 4)), apart=True, gap=16),
    Setup("chain: what is read is not written", ((0, 1), (1, 2), (2, 3), (7, 8))),
    Setup("exchange", ((0, 1), (1, 0), (4, 5))),
    Setup("to itself", ((3, 3), (3, 4), (5, 5), (6, 5))),
    Setup("two to one", ((0, 4), (1, 4), (2, 5)), apart=True),
    Setup("the same pair twice", ((0, 4), (0, 4), (2, 5))),
    Setup("out of range", ((12, 4), (0, 12), (2, 5), (1 << 30, 1), (0, 1 << 30))),
    Setup("out of range apart", ((7, 4), (0, 12), (6, 11)), apart=True),
    Setup("larger than a chunk", ((1, 0), (2, 1)), pools=2, blocks=3, block_bytes=16384 * 2 + 48),
    Setup("exactly a chunk", ((1, 0),), pools=1, blocks=3, block_bytes=16384, thread_blocks=1),
)


def many(pairs: int, block_bytes: int, generator: torch.Generator, thread_blocks: int) -> Setup:
    """A long list over distinct blocks, with some that are refused far from those that they disturb."""
    order = torch.randperm(2 * pairs, generator=generator).tolist()
    listed = list(zip(order[:pairs], order[pairs:], strict=True))
    listed[pairs - 1] = (order[0], listed[0][1])
    listed[3] = (listed[pairs // 2][1], listed[3][1])
    name = f"{pairs} pairs of {block_bytes} bytes, {thread_blocks} thread blocks"
    return Setup(name, listed, blocks=2 * pairs, block_bytes=block_bytes, thread_blocks=thread_blocks)


def cases(scale: Scale, seed: int) -> Iterator[Case]:
    """See `plugins.checks`."""
    generator = torch.Generator().manual_seed(seed)
    for setup in SETUPS:
        yield case_of(setup, generator)
    yield case_of(many(37, 48, generator, 3), generator)
    if scale is not Scale.QUICK:
        yield case_of(many(100, 32, generator, 5), generator)
    if scale is Scale.FULL:
        for size, blocks in ((16384, 0), (32768, 0), (65536 + 16, 16), (2048, 8)):
            yield case_of(many(513, size, generator, blocks), generator)
    yield from refused()


def refused() -> Iterator[Case]:
    """Calls that are turned down in words."""
    pool = torch.zeros(2, 4, 64, dtype=torch.uint8)
    good = {
        "destination": pool,
        "block_pairs": torch.zeros(1, 2, dtype=torch.int32),
        "refused": torch.zeros(1, dtype=torch.int32),
    }
    for words, changed in (
        ("block_bytes is 24; it must be a multiple of 16", {"destination": pool[:, :, :24].contiguous()}),
        ("a stride of 40 bytes", {"destination": torch.zeros(2, 4, 40, dtype=torch.uint8)[:, :, :32]}),
        ("axis 2 must be block_bytes, and block_bytes is 32", {"source": pool[:, :, :32].contiguous()}),
        ("axis 1 must be 2", {"block_pairs": torch.zeros(2, 3, dtype=torch.int32)}),
        ("block_pairs is int64; allowed: int32", {"block_pairs": torch.zeros(1, 2, dtype=torch.int64)}),
    ):
        yield Case(f"refused: {words}", "block_copy", {**good, **changed}, {}, error=words)
