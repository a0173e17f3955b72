"""Cases of `speculative`: drafts that are accepted, rejected and absent; certain ones and ones with probabilities."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from plugins.cuda.case import Case, Scale
from plugins.cuda.company import Company
from plugins.reference.speculative import speculative

from .sampling import DEFAULTS, FILTERS, LOGITS, UNUSABLE, row_of


@dataclass(frozen=True)
class Setup:
    """One call. logits: kinds of rows, filters: of requests; gone through again where they are too short.

    noise: how far the drafts' logits are from the target's; None: drafts have no probabilities.
    """

    name: str
    vocab: int
    batch: int = 4
    drafts: int = 3
    dtype: torch.dtype = torch.float32
    logits: tuple[str, ...] = ("normal",)
    filters: tuple[dict[str, float], ...] = FILTERS
    noise: float | None = 0.5
    ragged: bool = False
    mask: bool = False


def case_of(setup: Setup, seed: int) -> Case:
    """Draws what the setup asks for. The reference gives the tokens to the bit."""
    tensors = inputs_of(setup, seed)
    accepted, tokens = speculative(tensors)
    return Case(setup.name, "speculative", tensors, {"accepted": accepted, "tokens": tokens})


def inputs_of(setup: Setup, seed: int) -> dict[str, Tensor]:
    """Inputs by name. Drafts are drawn from their probabilities, or near the target's likeliest tokens."""
    generator = torch.Generator().manual_seed(seed)
    batch, drafts, vocab = setup.batch, setup.drafts, setup.vocab
    kinds = setup.logits
    rows = [row_of(kinds[row % len(kinds)], vocab, generator) for row in range(batch * (drafts + 1))]
    top = torch.finfo(setup.dtype).max
    limited = [row.where(~torch.isfinite(row), row.clamp(-top, top)) for row in rows]
    logits = torch.cat([torch.zeros(0), *limited]).to(setup.dtype).view(batch, drafts + 1, vocab)
    tensors = {
        "logits": logits,
        "seed": torch.randint(-(2**63), 2**63 - 1, (batch,), generator=generator).view(torch.uint64),
        "position": torch.randint(0, 2**20, (batch,), generator=generator, dtype=torch.int32),
    }
    filters = [DEFAULTS | setup.filters[request % len(setup.filters)] for request in range(batch)]
    for name in DEFAULTS:
        dtype = torch.int32 if name == "top_k" else torch.float32
        tensors[name] = torch.tensor([row[name] for row in filters], dtype=torch.float64).to(dtype)
    near = logits[:, :drafts].float().nan_to_num(0.0, 0.0, -1e4).clamp(-1e4, 1e4)
    near = near / tensors["temperature"].clamp(min=0.1)[:, None, None]
    near = near + (setup.noise or 0.3) * torch.randn(near.shape, generator=generator)
    probabilities = torch.softmax(near, dim=-1)
    if setup.noise is None:
        tensors["draft_tokens"] = near.argmax(dim=-1).int()
    else:
        flat = probabilities.reshape(-1, vocab)
        picked = torch.multinomial(flat, 1, generator=generator) if len(flat) > 0 else torch.zeros(0)
        tensors["draft_tokens"] = picked.view(batch, drafts).int()
        tensors["draft_probs"] = probabilities
    if setup.ragged:
        lengths = torch.arange(batch) % (drafts + 1)
        beyond = torch.arange(drafts)[None, :] >= lengths[:, None]
        tensors["draft_tokens"] = tensors["draft_tokens"].masked_fill(beyond, -1)
    if setup.mask:
        shape = (batch, drafts + 1, -(-vocab // 32))
        words = torch.randint(-(2**31), 2**31, shape, generator=generator).to(torch.int32)
        words[..., 0] |= 2
        tensors["allowed_tokens"] = words
    return tensors


def quick_setups() -> Iterator[Setup]:
    """Few drafts of each kind; float16 alone."""
    for setup in _quick_setups():
        yield replace(setup, dtype=torch.float16)


def _quick_setups() -> Iterator[Setup]:
    yield Setup("probabilities", 40, batch=9, logits=("normal", "peaked"))
    yield Setup("certain", 70, batch=6, noise=None, logits=("peaked", "normal", "flat"), ragged=True)
    yield Setup("segments", 2100, batch=3, drafts=2, filters=FILTERS[1:4], noise=1.0)
    yield Setup(
        "unusable", 33, batch=4, drafts=2, logits=("peaked", "normal", *UNUSABLE), filters=FILTERS[1:3]
    )
    yield Setup("mask", 64, batch=3, mask=True, noise=0.1, filters=FILTERS[1:3])


def small_setups() -> Iterator[Setup]:
    """The quick ones; all filters, odd vocabularies, all dtypes."""
    yield from quick_setups()
    types = (torch.float16, torch.bfloat16, torch.float32)
    for place, (vocab, batch, drafts) in enumerate(
        ((1, 2, 1), (5, 17, 4), (31, 21, 2), (257, 7, 5), (1000, 3, 3), (4099, 2, 1), (8, 5, 0))
    ):
        yield Setup(
            f"vocab-{vocab}",
            vocab,
            batch,
            drafts,
            types[place % 3],
            LOGITS[place:] + LOGITS[:place],
            FILTERS[place:],
            noise=(0.3, None, 0.0)[place % 3],
            ragged=place % 2 == 0,
        )
    yield Setup("same", 50, batch=4, noise=0.0, filters=({"temperature": 1.0},))
    yield Setup("far", 50, batch=6, noise=6.0)
    yield Setup("no-requests", 50, batch=0)


def full_setups() -> Iterator[Setup]:
    """Vocabularies of real models."""
    yield from small_setups()
    yield Setup("drafted-128256", 128256, 8, 4, torch.bfloat16, ("normal", "peaked"))
    yield Setup("ngram-151936", 151936, 6, 5, torch.float32, ("peaked",), noise=None, ragged=True)
    yield Setup("many-32000", 32000, 48, 2, torch.float16, LOGITS)


def refused_cases() -> Iterator[Case]:
    """Calls that must be refused, each with the words to be said."""
    good = case_of(Setup("good", 40, batch=2), 1)
    wrong = {
        "allowed_tokens has 1 words a row; a vocabulary of 40 takes 2": (
            "allowed_tokens",
            torch.zeros(2, 4, 1, dtype=torch.int32),
        ),
        "draft_tokens is [2, 4]; axis 1 must be drafts": (
            "draft_tokens",
            torch.zeros(2, 4, dtype=torch.int32),
        ),
        "draft_probs is [2, 4, 40]; axis 1 must be drafts": ("draft_probs", torch.zeros(2, 4, 40)),
        "draft_probs is float16; allowed: float32": (
            "draft_probs",
            torch.zeros(2, 3, 40, dtype=torch.float16),
        ),
        "top_p is [3]; axis 0 must be batch": ("top_p", torch.zeros(3)),
        "logits is int8; allowed: float32, float16, bfloat16": (
            "logits",
            torch.zeros(2, 4, 40, dtype=torch.int8),
        ),
    }
    for words, (name, value) in wrong.items():
        yield replace(good, name=words, tensors={**good.tensors, name: value}, error=words)


def cases(scale: Scale, seed: int) -> Iterator[Case]:
    """See `plugins.cuda.case.Scale`."""
    setups = {Scale.QUICK: quick_setups, Scale.SMALL: small_setups, Scale.FULL: full_setups}[scale]
    for place, setup in enumerate(setups()):
        yield case_of(setup, 1000 * seed + place)
    if scale is not Scale.QUICK:
        yield from refused_cases()


def companies(seed: int, requests: int) -> Iterator[Company]:
    """A request alone and among others."""
    among = Setup("among", 2100, requests, 2, logits=LOGITS)
    tensors = inputs_of(among, seed)
    for own in sorted({0, requests // 2, requests - 1}):
        alone = {name: value[own : own + 1].clone() for name, value in tensors.items()}
        rows = (torch.tensor([0]), torch.tensor([own]))
        calls = [_call(f"alone-{own}", alone), _call(f"among-{own}", tensors)]
        yield Company(f"request-{own}", calls[0], calls[1], {"accepted": rows, "tokens": rows})


def _call(name: str, tensors: dict[str, Tensor]) -> Case:
    accepted, tokens = speculative(tensors)
    return Case(name, "speculative", tensors, {"accepted": accepted, "tokens": tokens})
