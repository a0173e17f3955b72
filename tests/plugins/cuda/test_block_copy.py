"""`block_copy`: the kernel under the emulator against the reference, and the reference's rule of refusal."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from plugins.checks import block_copy as checks
from plugins.cuda.emulated import Build
from plugins.cuda.library import Library
from plugins.reference.block_copy import accepted_pairs, block_copy
from tests.plugins.cuda.emulation import SMALL_UNDER_ASAN, wrong

OPERATORS = ("block_copy",)


@SMALL_UNDER_ASAN
def test_the_kernel_gives_what_the_reference_gives(flavour: str, scale: str, seed: int) -> None:
    assert wrong(checks, OPERATORS, flavour, scale, seed) == {}


def test_the_pools_themselves_may_be_named_as_source() -> None:
    """`source` at the address of `destination` is the same as no source: in the library, since a case's lie apart."""
    pool = torch.randint(0, 256, (2, 6, 32), dtype=torch.uint8)
    pairs = torch.tensor([[0, 1], [1, 2], [3, 5]], dtype=torch.int32)
    want, refused = block_copy(None, pool, pairs)
    counted = torch.zeros(1, dtype=torch.int32)
    tensors = {"source": pool, "destination": pool, "block_pairs": pairs, "refused": counted}
    Library(Build("plain", OPERATORS).library()).run("block_copy", tensors)
    assert torch.equal(pool, want)
    assert int(counted) == refused == 1


def test_swapping_out_and_in_again_restores_blocks() -> None:
    library = Library(Build("plain", OPERATORS).library())
    pool = torch.randint(0, 256, (3, 8, 48), dtype=torch.uint8)
    host, counted = torch.zeros(3, 4, 48, dtype=torch.uint8), torch.zeros(1, dtype=torch.int32)
    before = pool.clone()
    out = torch.tensor([[6, 0], [1, 3]], dtype=torch.int32)
    library.run("block_copy", {"source": pool, "destination": host, "block_pairs": out, "refused": counted})
    pool[:, [6, 1]] = 0
    library.run(
        "block_copy", {"source": host, "destination": pool, "block_pairs": out.flip(1), "refused": counted}
    )
    assert torch.equal(pool, before)
    assert int(counted) == 0


@pytest.mark.parametrize("same_pools", [False, True])
def test_what_is_accepted_gives_the_same_in_any_order(same_pools: bool) -> None:
    generator = random.Random(1)
    several = 0
    for _ in range(300):
        pairs = [(generator.randrange(-1, 6), generator.randrange(-1, 6)) for _ in range(4)]
        accepted, refused = accepted_pairs(pairs, 5, 5, same_pools=same_pools)
        assert len(accepted) + refused <= len(pairs)
        several += len(accepted) > 1
        results = set()
        for order in itertools.permutations(accepted):
            source = list("abcde")
            destination = source if same_pools else list("vwxyz")
            for a, b in order:
                destination[b] = source[a]
            results.add("".join(destination))
        assert len(results) == 1
    assert several > 20


def test_nothing_is_refused_without_need() -> None:
    assert accepted_pairs([(0, 1), (0, 2), (3, 4), (-1, 2), (5, 5)], 6, 6, same_pools=True) == (
        [(0, 1), (0, 2), (3, 4)],
        0,
    )
    assert accepted_pairs([(0, 1), (1, 0), (2, 2)], 3, 3, same_pools=False) == ([(0, 1), (1, 0), (2, 2)], 0)
    assert accepted_pairs([(0, 1), (1, 2)], 3, 3, same_pools=True) == ([(1, 2)], 1)
