"""Cases of `token_counts`: prompts and chosen tokens, repeated ones, requests without a row."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from plugins.cuda.case import Case, Scale
from plugins.reference.sampling import token_counts


def case_of(name: str, lengths: tuple[int, ...], vocab: int, seed: int) -> Case:
    """lengths: tokens of each request, of which about half are its prompt. One request has no row."""
    generator = torch.Generator().manual_seed(seed)
    requests, slots = len(lengths), len(lengths) + 2
    cu_tokens = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0).int()
    total = int(cu_tokens[-1])
    tokens = torch.randint(-2, vocab + 2, (total + 3,), generator=generator, dtype=torch.int32)
    tokens[::3] = tokens[::3].clamp(max=vocab // 8)  # many times the same
    tensors: dict[str, Tensor] = {
        "tokens": tokens,
        "cu_tokens": cu_tokens,
        "prompt_lens": torch.tensor([length // 2 + length % 3 // 2 for length in lengths], dtype=torch.int32),
        "count_slots": torch.randperm(slots, generator=generator)[:requests].int(),
        "token_counts": torch.randint(-(2**15), 2**15, (slots, vocab), generator=generator).to(torch.int16),
    }
    if requests > 2:
        tensors["count_slots"][1] = -1
        tensors["count_slots"][2] = slots
    arguments = [tensors[name] for name in ("tokens", "cu_tokens", "prompt_lens", "count_slots")]
    expected = {"token_counts": token_counts(tensors["token_counts"], *arguments)}
    return Case(name, "token_counts", tensors, expected)


def cases(scale: Scale, seed: int) -> Iterator[Case]:
    """See `plugins.cuda.case.Scale`."""
    yield case_of("few", (5, 9, 3, 300, 0, 1), 37, seed)
    yield case_of("one-word", (40, 40), 1, seed)
    if scale is Scale.QUICK:
        return
    yield case_of("saturated", (66000,), 2, seed)
    yield case_of("none", (), 11, seed)
    yield case_of("wide", (17, 900, 2, 33), 2048, seed)
    good = case_of("good", (5, 9), 37, seed)
    for name, tensors in {
        "prompt_lens is [3]; axis 0 must be requests": {**good.tensors, "prompt_lens": torch.zeros(3).int()},
        "token_counts is int32; allowed: int16": {**good.tensors, "token_counts": torch.zeros(4, 37).int()},
    }.items():
        yield Case(name, "token_counts", tensors, good.expected, error=name)
    if scale is Scale.FULL:
        yield case_of("model", (4000, 128000, 17, 1, 900) * 8, 128256, seed)
