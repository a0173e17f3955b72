"""Cases of `carry_tokens`: places that stay, rows that are read twice or never, tokens that there were none of."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from plugins.cuda.case import Case, Scale
from plugins.reference.carry_tokens import carry_tokens


def case_of(name: str, rows: int, tokens: int, seed: int) -> Case:
    """About half of the places are carried over; some rows are out of range, and some tokens negative."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        "sampled": torch.randint(-3, 50000, (rows,), generator=generator, dtype=torch.int32),
        "source": torch.randint(-rows - 1, rows + 1, (tokens,), generator=generator, dtype=torch.int32),
        "input_ids": torch.randint(0, 50000, (tokens,), generator=generator, dtype=torch.int32),
    }
    tensors["sampled"][1::5] = -1
    tensors["source"][2::7] = -1
    expected = {"input_ids": carry_tokens(**tensors)}
    return Case(name, "carry_tokens", tensors, expected)


def cases(scale: Scale, seed: int) -> Iterator[Case]:
    """See `plugins.cuda.case.Scale`."""
    yield case_of("decode", 5, 5, seed)
    yield case_of("more than a block of threads", 40, 300, seed)
    yield case_of("exactly a block of threads", 16, 256, seed)
    yield case_of("more rows than places", 64, 3, seed)
    if scale is Scale.QUICK:
        return
    yield case_of("nothing", 4, 0, seed)
    yield case_of("no rows", 0, 9, seed)
    yield case_of("one", 1, 1, seed)
    good = case_of("good", 3, 7, seed)
    for name, tensors in {
        "axis 0 must be tokens, and tokens is 7": {"input_ids": torch.zeros(8, dtype=torch.int32)},
        "sampled is int64; allowed: int32": {"sampled": torch.zeros(3, dtype=torch.int64)},
    }.items():
        yield Case(f"refused: {name}", "carry_tokens", {**good.tensors, **tensors}, {}, error=name)
    if scale is Scale.FULL:
        yield case_of("a long prompt beside decode", 512, 8192, seed)
