"""Cases of `sampling`: every filter alone and together, each path to the threshold, logits that are hard to rank."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from plugins.cuda.case import Case, Scale
from plugins.cuda.company import Company
from plugins.reference.sampling import log_probs, sampling

LOG_PROB_TOLERANCE = 1e-6

LOGITS = (
    "normal",
    "peaked",
    "flat",
    "equal",
    "two_ties",
    "few_values",
    "denormal",
    "one_finite",
    "some_finite",
    "huge",
    "rising",
    "spike",
)
UNUSABLE = ("nan", "infinite", "nothing")

FILTERS: tuple[dict[str, float], ...] = (
    {"temperature": 0.7, "top_k": 50, "top_p": 0.9},
    {"temperature": 1.0},
    {"temperature": 0.0},
    {"temperature": 0.9, "top_p": 0.8},
    {"temperature": 1.0, "top_k": 5},
    {"temperature": 1.0, "min_p": 0.2},
    {"temperature": 2.5, "top_p": 0.6},
    {"temperature": 1.0, "top_k": 300, "top_p": 0.7},
    {"temperature": 1.4, "top_k": 30, "top_p": 0.9, "min_p": 0.01},
    {"temperature": 1e-6, "top_p": 0.9},
    {"temperature": 0.8, "top_k": 1},
    {"temperature": 1.0, "top_k": 10**6, "top_p": 0.999},
    {"temperature": 0.3, "top_p": 0.0},
    {"temperature": 1.0, "top_p": 0.97, "min_p": 1.0},
    {"temperature": 100.0, "top_p": 0.95},
    {"temperature": 1e30, "top_k": 40},
    {"temperature": 1.0, "top_k": 2000},
    {"temperature": 1.7, "top_k": 1100, "top_p": 0.4},
    {"temperature": 0.5, "top_k": 64, "min_p": 0.05},
    {"temperature": 1e-42},
    {"temperature": 6.0, "top_k": 3, "top_p": 0.5},
)
DEFAULTS = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


@dataclass(frozen=True)
class Setup:
    """One call. logits, filters: of each row; gone through again where they are too short."""

    name: str
    vocab: int
    batch: int = 4
    dtype: torch.dtype = torch.float32
    logits: tuple[str, ...] = ("normal",)
    filters: tuple[dict[str, float], ...] = FILTERS
    penalties: bool = False
    slots: bool = False
    mask: bool = False
    bias: int = 0
    top: int | None = None  # log-probabilities of the chosen token and of so many likeliest
    padding: int = 0  # elements between rows


def row_of(kind: str, vocab: int, generator: torch.Generator) -> Tensor:
    """Logits float32 [vocab]."""
    noise = torch.randn(vocab, generator=generator)
    if kind in ("normal", "huge", "denormal", "flat"):
        return noise * {"normal": 3.0, "huge": 1e37, "denormal": 1e-40, "flat": 0.02}[kind]
    if kind == "peaked":
        return 2 * noise + 14 * (torch.rand(vocab, generator=generator) < 20 / vocab)
    if kind == "few_values":
        return torch.round(noise)
    if kind == "spike":  # one token against the sum of many small ones
        return (0.02 * noise).index_fill(0, torch.tensor(vocab // 3), math.log(vocab) - 1)
    if kind == "rising":
        return torch.linspace(-6, 6, vocab)
    if kind == "equal":
        return torch.full((vocab,), -1.5)
    if kind == "two_ties":
        return torch.where(noise > 0.3, 2.0, 1.0)
    if kind == "nothing":
        return torch.full((vocab,), -math.inf)
    place = int(torch.randint(vocab, (), generator=generator))
    if kind == "one_finite":
        return torch.full((vocab,), -math.inf).index_fill(0, torch.tensor(place), -3.0)
    if kind == "some_finite":
        return noise.masked_fill(torch.rand(vocab, generator=generator) < 0.6, -math.inf).index_fill(
            0, torch.tensor(place), 0.5
        )
    return noise.index_fill(0, torch.tensor(place), {"nan": math.nan, "infinite": math.inf}[kind])


def case_of(setup: Setup, seed: int) -> Case:
    """Draws what the setup asks for. The reference gives tokens and counts to the bit."""
    tensors = inputs_of(setup, seed)
    result = sampling(tensors)
    expected = {"token": result.token}
    tolerances = {}
    if result.token_counts is not None:
        expected["token_counts"] = result.token_counts
    if setup.top is not None:
        chosen, ids, likeliest = log_probs(tensors["logits"], result.token, setup.top)
        expected["token_log_prob"] = chosen
        tolerances["token_log_prob"] = LOG_PROB_TOLERANCE
        if setup.top > 0:
            expected |= {"top_ids": ids, "top_log_probs": likeliest}
            tolerances["top_log_probs"] = LOG_PROB_TOLERANCE
    return Case(setup.name, "sampling", tensors, expected, tolerances=tolerances)


def inputs_of(setup: Setup, seed: int) -> dict[str, Tensor]:
    """Inputs and in-outs by name."""
    generator = torch.Generator().manual_seed(seed)
    batch, vocab = setup.batch, setup.vocab
    rows = [row_of(setup.logits[row % len(setup.logits)], vocab, generator) for row in range(batch)]
    padded = torch.full((batch, vocab + setup.padding), math.nan, dtype=setup.dtype)
    logits = padded[:, :vocab]
    if batch > 0:
        top = torch.finfo(setup.dtype).max
        logits.copy_(torch.stack([row.where(~torch.isfinite(row), row.clamp(-top, top)) for row in rows]))
    filters = [DEFAULTS | setup.filters[row % len(setup.filters)] for row in range(batch)]
    tensors = {
        "logits": logits,
        "seed": torch.randint(-(2**63), 2**63 - 1, (batch,), generator=generator).view(torch.uint64),
        "position": torch.randint(0, 2**20, (batch,), generator=generator, dtype=torch.int32),
    }
    for name in DEFAULTS:
        dtype = torch.int32 if name == "top_k" else torch.float32
        tensors[name] = torch.tensor([row[name] for row in filters], dtype=torch.float64).to(dtype)
    if setup.penalties:
        _add_penalties(setup, tensors, generator)
    if setup.mask:
        words = torch.randint(-(2**31), 2**31, (batch, -(-vocab // 32)), generator=generator).to(torch.int32)
        words[:, 0] |= 8 if vocab > 3 else 1
        words[::2] &= words[::2].roll(1, dims=1) | 8
        tensors["allowed_tokens"] = words
    if setup.bias:
        ids = torch.randint(0, vocab, (batch, setup.bias), generator=generator, dtype=torch.int32)
        ids[1::3] = -1  # rows without
        beyond_end = setup.bias > 2
        if beyond_end:  # the last one comes after the list's end, and would decide
            ids[0, -2] = -1
            ids[0, -1] = 3
        tensors["bias_ids"] = ids
        values = 6 * torch.randn(batch, setup.bias, generator=generator)
        if beyond_end:
            values[0, -1] = 50.0
        tensors["bias_values"] = values
    return tensors


def _add_penalties(setup: Setup, tensors: dict[str, Tensor], generator: torch.Generator) -> None:
    batch, vocab = setup.batch, setup.vocab
    slots = batch + 2 if setup.slots else batch
    tensors["repetition_penalty"] = torch.tensor([1.0, 1.7, 0.6, 1.2])[torch.arange(batch) % 4]
    tensors["frequency_penalty"] = torch.tensor([0.0, 0.3, -0.2])[torch.arange(batch) % 3]
    tensors["presence_penalty"] = torch.tensor([0.0, 0.5])[torch.arange(batch) // 2 % 2]
    times = torch.randint(0, 5, (slots, vocab), generator=generator).to(torch.int16)
    in_prompt = torch.rand(slots, vocab, generator=generator) < 0.2
    counts = times * (torch.rand(slots, vocab, generator=generator) < 0.3)
    counts = torch.where(in_prompt, counts | torch.tensor(-(2**15), dtype=torch.int16), counts)
    counts[:, : vocab // 2 : 3] = 0x7FFF  # chosen as often as can be told
    tensors["token_counts"] = counts.contiguous()
    if setup.slots:
        order = torch.randperm(slots, generator=generator)[:batch].to(torch.int32)
        order[batch // 2] = -1
        tensors["count_slots"] = order


def quick_setups() -> Iterator[Setup]:
    """Each path through the kernels, few rows; float16 alone."""
    for setup in _quick_setups():
        yield replace(setup, dtype=torch.float16)


def _quick_setups() -> Iterator[Setup]:
    few, cut, greedy = FILTERS[0], FILTERS[4], FILTERS[2]
    yield Setup("filters", 257, batch=10, filters=(*FILTERS[:9], FILTERS[18]))
    yield Setup(
        "bins",
        1500,
        batch=7,
        logits=("normal", "normal", "denormal", "flat"),
        filters=tuple(FILTERS[place] for place in (3, 12, 6, 13, 16, 17, 9)),
    )
    hard = (few, FILTERS[8], FILTERS[16], greedy, cut, cut, FILTERS[20])
    yield Setup("hard_rows", 301, batch=11, logits=LOGITS, filters=hard)
    yield Setup("overflow", 2100, batch=4, logits=("equal", "flat", "two_ties"), filters=FILTERS[3:8])
    yield Setup("unusable", 70, batch=4, logits=(*UNUSABLE, "normal"), filters=FILTERS[:3], top=2)
    yield Setup("penalties", 500, batch=5, penalties=True, slots=True, mask=True, bias=4, padding=3)
    yield Setup("log_probs", 1100, batch=3, logits=("normal", "few_values", "equal"), top=5)
    sharp: tuple[dict[str, float], ...] = (
        {"top_k": 2},
        {"top_k": 7},
        {"top_k": 100},
        {"top_p": 0.02},
        {"top_k": 20, "min_p": 0.99},
    )
    yield Setup("sharp", 301, batch=20, logits=("flat",), filters=sharp)  # one token more or less is seen
    ties: tuple[dict[str, float], ...] = ({"top_k": 9}, {"top_k": 20}, {"top_p": 0.15})
    yield Setup("ties", 301, batch=15, logits=("few_values",), filters=ties)
    yield Setup("small_weights", 2100, batch=6, logits=("spike",), filters=({"top_p": 0.9}, {"top_p": 0.7}))
    yield Setup("spread", 4099, batch=1, filters=({"top_k": 40, "top_p": 0.9},))
    yield Setup("spread_bins", 4099, batch=2, filters=({"top_p": 0.7}, {}), logits=("rising", "normal"))


def small_setups() -> Iterator[Setup]:
    """The quick ones; all vocabularies and batches with all filters; all dtypes; each adjustment alone."""
    yield from quick_setups()
    types = (torch.float32, torch.float16, torch.bfloat16)
    for place, (vocab, batch) in enumerate(
        ((1, 3), (5, 17), (31, 7), (257, 17), (1000, 9), (4099, 3), (1028, 6))
    ):
        cut = place * 3 % len(FILTERS)
        yield Setup(
            f"vocab-{vocab}",
            vocab,
            batch,
            types[place % 3],
            LOGITS[place:] + LOGITS[:place],
            FILTERS[cut:] + FILTERS[:cut],
            top=min(place, vocab),
        )
    base = Setup("penalties-alone", 300, batch=6, penalties=True, logits=("normal", "flat"))
    yield base
    yield replace(base, name="penalties-slots", slots=True, dtype=torch.float16, padding=4)
    yield Setup("mask-alone", 1030, batch=4, mask=True, filters=FILTERS[:4])
    yield Setup("bias-alone", 2060, batch=3, bias=7, filters=FILTERS[2:5])
    yield Setup("top-everything", 40, batch=2, top=40, filters=FILTERS[1:3], logits=("normal", "some_finite"))
    yield Setup("top-many", 1100, batch=2, top=64, logits=("equal", "some_finite"))
    yield Setup("no-rows", 31, batch=0)


def full_setups() -> Iterator[Setup]:
    """Vocabularies of real models in the batches that are served."""
    yield from small_setups()
    types = (torch.float32, torch.bfloat16, torch.float16)
    for place, (vocab, batch) in enumerate(
        ((128256, 64), (151936, 17), (50257, 3), (32000, 256), (128256, 1))
    ):
        logits = ("normal", "peaked", "flat") + (LOGITS if place else ())
        yield Setup(f"vocab-{vocab}-{batch}", vocab, batch, types[place % 3], logits, top=8)
    usual = ({"temperature": 0.7, "top_k": 50, "top_p": 0.9},)
    yield Setup("usual", 128256, 64, filters=usual)
    yield Setup("all", 128256, 16, torch.bfloat16, penalties=True, slots=True, mask=True, bias=300, top=20)
    yield Setup("longest", 1 << 20, 3, torch.float16, ("normal", "equal", "flat"))


def refused_cases() -> Iterator[Case]:
    """Calls that must be refused, each with the words to be said."""
    good = case_of(Setup("good", 40, batch=2, penalties=True, slots=True, mask=True, bias=2, top=3), 1)
    missing = {
        "bias_ids and bias_values must be given together": "bias_values",
        "count_slots is given without token_counts": "token_counts",
        "logits is absent": "logits",
        "seed is absent": "seed",
    }
    for words, name in missing.items():
        tensors = {key: value for key, value in good.tensors.items() if key != name}
        expected = {key: value for key, value in good.expected.items() if key != name}
        yield replace(good, name=words, tensors=tensors, expected=expected, error=words)
    wrong = {
        "allowed_tokens has 3 words a row; a vocabulary of 40 takes 2": (
            "allowed_tokens",
            torch.zeros(2, 3, dtype=torch.int32),
        ),
        "seed is int64; allowed: uint64": ("seed", torch.zeros(2, dtype=torch.int64)),
        "top_k is [3]; axis 0 must be batch": ("top_k", torch.zeros(3, dtype=torch.int32)),
        "token_counts is int32": ("token_counts", torch.zeros(4, 40, dtype=torch.int32)),
        "stride": ("logits", torch.zeros(40, 2).t()),
    }
    for words, (name, value) in wrong.items():
        yield replace(good, name=words, tensors={**good.tensors, name: value}, error=words)
    empty = Case(
        "empty", "sampling", {**inputs_of(Setup("", 1), 1)}, {"token": torch.zeros(4, dtype=torch.int32)}
    )
    words = "vocab is 0; allowed are 1 to 1048576"
    yield replace(empty, name=words, tensors={**empty.tensors, "logits": torch.zeros(4, 0)}, error=words)
    penalty = {"repetition_penalty": torch.ones(2)}
    plain = case_of(Setup("plain", 40, batch=2), 1)
    words = "repetition_penalty is given without token_counts"
    yield replace(plain, name=words, tensors={**plain.tensors, **penalty}, error=words)
    many = case_of(Setup("many", 100, batch=1, top=64), 1)
    wide = {"top_ids": torch.zeros(1, 65, dtype=torch.int32), "top_log_probs": torch.zeros(1, 65)}
    words = "top is 65; allowed are 0 to 64"
    yield replace(many, name=words, expected={**many.expected, **wide}, error=words)


def cases(scale: Scale, seed: int) -> Iterator[Case]:
    """See `plugins.cuda.case.Scale`."""
    setups = {Scale.QUICK: quick_setups, Scale.SMALL: small_setups, Scale.FULL: full_setups}[scale]
    for place, setup in enumerate(setups()):
        yield case_of(setup, 1000 * seed + place)
    if scale is not Scale.QUICK:
        yield from refused_cases()


def companies(seed: int, requests: int) -> Iterator[Company]:
    """A row alone and among others: the blocks are divided otherwise, the result is the same."""
    for place, filters in enumerate(FILTERS[3:9:2]):
        among = Setup(
            "among", 4099, requests, logits=LOGITS, filters=(*FILTERS[:3], filters), penalties=True, top=3
        )
        tensors = inputs_of(among, seed + place)
        own = min(3, requests - 1)
        alone = {name: value[own : own + 1].clone() for name, value in tensors.items()}
        rows = (torch.tensor([0]), torch.tensor([own]))
        calls = [_with_outputs(f"alone-{place}", alone), _with_outputs(f"among-{place}", tensors)]
        names = ("token", "token_counts", "token_log_prob", "top_ids", "top_log_probs")
        yield Company(f"filters-{place}", calls[0], calls[1], dict.fromkeys(names, rows))


def _with_outputs(name: str, tensors: dict[str, Tensor]) -> Case:
    batch = len(tensors["logits"])
    result = sampling(tensors)
    assert result.token_counts is not None
    chosen, ids, likeliest = log_probs(tensors["logits"], result.token, 3)
    expected = {
        "token": result.token,
        "token_counts": result.token_counts,
        "token_log_prob": chosen,
        "top_ids": ids.reshape(batch, 3),
        "top_log_probs": likeliest,
    }
    tolerances = {"token_log_prob": LOG_PROB_TOLERANCE, "top_log_probs": LOG_PROB_TOLERANCE}
    return Case(name, "sampling", tensors, expected, tolerances=tolerances)
