"""What `sampling` means: one row of logits after the other, to the bit.

The order of filters and the random numbers are those of the CPU runtime (`model_repo/runtime/sampler.py`). Weights of
tokens are integers, so that sums have no order: a token at distance d = (largest - logit) / temperature weighs
round(2^42 e^-d). Top-p: Holtzman et al., "The curious case of neural text degeneration", 2019. Repetition penalty:
Keskar et al., "CTRL", 2019. Presence and frequency penalties are OpenAI's.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model_repo.runtime.philox import uniform

WEIGHT_BITS = 42
TIMES_CHOSEN = 0x7FFF
"""Bits of a token count that say how often the token was chosen; the sign bit says that it is in the prompt."""

NO_TOKEN = -1


@dataclass(frozen=True)
class Parameters:
    """How one row is sampled. As in the operator's description."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0

    @property
    def greedy(self) -> bool:
        """Always the likeliest token."""
        return not self.temperature > 0 or self.top_k == 1


@dataclass(frozen=True)
class Distribution:
    """What a row is drawn from. kept: token ids, ascending; weights: theirs, int64; distances: of all, float32."""

    kept: Tensor
    weights: Tensor
    distances: Tensor

    @property
    def total(self) -> int:
        return int(self.weights.sum())


@dataclass(frozen=True)
class Sampled:
    """token: int32 [batch]; token_counts: the table as it is afterwards."""

    token: Tensor
    token_counts: Tensor | None


def sampling(tensors: Mapping[str, Tensor]) -> Sampled:
    """Samples each row. `tensors`: the operator's inputs by name."""
    logits = tensors["logits"]
    counts = tensors["token_counts"].clone() if "token_counts" in tensors else None
    tokens = []
    for row in range(len(logits)):
        parameters = parameters_of(tensors, row)
        seen = None
        if counts is not None:
            slot = int(tensors["count_slots"][row]) if "count_slots" in tensors else row
            seen = counts[slot] if 0 <= slot < len(counts) else None
        values = adjusted_row(logits[row].float(), tensors, row, seen)
        token = NO_TOKEN
        if values is not None:
            word = philox_words(tensors, row)[0]
            token = (
                int(values.argmax()) if parameters.greedy else draw(distribution(values, parameters), word)
            )
        if seen is not None and token != NO_TOKEN and int(seen[token]) & TIMES_CHOSEN < TIMES_CHOSEN:
            seen[token] += 1
        tokens.append(token)
    return Sampled(torch.tensor(tokens, dtype=torch.int32), counts)


def parameters_of(tensors: Mapping[str, Tensor], request: int) -> Parameters:
    """The parameters of a request, from arrays [requests] by name."""
    given: dict[str, Any] = {
        field.name: tensors[field.name][request].item()
        for field in dataclasses.fields(Parameters)
        if field.name in tensors
    }
    return Parameters(**given)


def philox_words(tensors: Mapping[str, Tensor], request: int, ahead: int = 0) -> tuple[int, int]:
    """Words 0 and 1, 53 bits each, of the request's random numbers at its position (and `ahead` further)."""
    seed = int(tensors["seed"].view(torch.int64)[request]) % 2**64
    position = int(tensors["position"][request]) + ahead
    return philox_word(seed, position, 0), philox_word(seed, position, 1)


def philox_word(seed: int, position: int, word: int) -> int:
    """The upper 53 bits of a word of Philox4x64-10. Word 0 is what the runtime's `uniform` is made of."""
    if word == 0:
        return int(uniform(seed, position) * 2**53)
    # numpy counts up before it draws.
    return int(np.random.Philox(key=seed, counter=(position - 1) % 2**256).random_raw(word + 1)[word]) >> 11


def adjusted_row(
    logits: Tensor, tensors: Mapping[str, Tensor], row: int, counts: Tensor | None
) -> Tensor | None:
    """Logits [vocab] float32 after bias, penalties and mask; None when nothing can be chosen (NaN, +inf, all -inf).

    counts: int16 [vocab] of the request, None without penalties.
    """
    unusable = not bool((logits < math.inf).all())
    values = logits.clone()
    if "bias_ids" in tensors:
        for token, bias in zip(tensors["bias_ids"][row].tolist(), tensors["bias_values"][row], strict=True):
            if token < 0:
                break
            if token < len(values):
                values[token] += bias
    if counts is not None:
        parameters = parameters_of(tensors, row)
        repetition = torch.tensor(parameters.repetition_penalty)
        times = (counts.int() & TIMES_CHOSEN).float()
        penalized = torch.where(values > 0, values / repetition, values * repetition)
        values = torch.where(counts != 0, penalized, values)
        lowered = (
            fused(torch.tensor(-parameters.frequency_penalty), times, values) - parameters.presence_penalty
        )
        values = torch.where(times > 0, lowered, values)
    if "allowed_tokens" in tensors:
        values = values.masked_fill(~allowed_of(tensors["allowed_tokens"][row], len(values)), -math.inf)
    usable = not unusable and bool((values < math.inf).all()) and bool((values > -math.inf).any())
    return values if usable else None


def token_counts(
    table: Tensor, tokens: Tensor, cu_tokens: Tensor, prompt_lens: Tensor, count_slots: Tensor
) -> Tensor:
    """The table [slots, vocab] int16 with the rows of these requests counted anew from their tokens so far.

    tokens: int32, packed; cu_tokens [requests + 1]; prompt_lens, count_slots [requests] (outside the table: skipped).
    """
    table = table.clone()
    for request, slot in enumerate(count_slots.tolist()):
        if not 0 <= slot < len(table):
            continue
        own = tokens[int(cu_tokens[request]) : int(cu_tokens[request + 1])].long()
        known = (own >= 0) & (own < table.shape[1])
        in_prompt = torch.arange(len(own)) < int(prompt_lens[request])
        times = torch.bincount(own[known & ~in_prompt], minlength=table.shape[1]).clamp(max=TIMES_CHOSEN)
        table[slot] = times.to(torch.int16)
        table[slot, own[known & in_prompt]] |= torch.tensor(-(2**15), dtype=torch.int16)
    return table


def allowed_of(words: Tensor, vocab: int) -> Tensor:
    """bool [vocab] from a mask of int32 words."""
    bits = words.long()[:, None] >> torch.arange(32) & 1
    return bits.flatten()[:vocab].bool()


def distribution(values: Tensor, parameters: Parameters) -> Distribution:
    """What adjusted logits [vocab] float32 (with a finite largest) are sampled from, by a temperature above 0."""
    distances = (values.max() - values) / torch.tensor(parameters.temperature)
    order = torch.argsort(distances, stable=True)  # likeliest first, among equals the smaller id
    order = order[torch.isfinite(distances[order])]
    if 0 < parameters.top_k < len(values):
        order = order[: parameters.top_k]
    if parameters.min_p > 0:
        limit = torch.tensor(-math.log(min(parameters.min_p, 1.0)), dtype=torch.float32)
        order = order[distances[order] <= limit]
    if parameters.top_p < 1:
        weights = weights_of(distances[order])
        before = weights.cumsum(0) - weights
        order = order[before < nucleus_target(parameters.top_p, int(weights.sum()))]
    kept = order.sort().values
    return Distribution(kept, weights_of(distances[kept]), distances)


def margin(values: Tensor, parameters: Parameters, word: int) -> float:
    """How near the choice was, as a share of the whole mass (min-p: as a distance).

    Another implementation whose probabilities are within this chooses the same token. For adjusted logits [vocab]
    float32 and word 0 of the row's random numbers; infinite for a greedy row.
    """
    if parameters.greedy:
        return math.inf
    gaps = [math.inf]
    if parameters.min_p > 0:
        distances = (values.max() - values) / torch.tensor(parameters.temperature)
        gaps.append(float((distances + math.log(parameters.min_p)).abs().min()))
    if parameters.top_p < 1:
        whole = distribution(values, dataclasses.replace(parameters, top_p=1.0))
        running = whole.weights[torch.argsort(whole.distances[whole.kept], stable=True)].cumsum(0).double()
        gaps.append(float((running / whole.total - parameters.top_p).abs().min()))
    given = distribution(values, parameters)
    if len(given.kept) > 1:
        gaps.append(float((given.weights.cumsum(0).double() / given.total - word * 2.0**-53).abs().min()))
    return min(gaps)


def nucleus_target(top_p: float, mass: int) -> int:
    """The running weight at which the likeliest tokens are enough."""
    return min(max(math.ceil(max(top_p, 0.0) * float(mass)), 1), mass)


def draw(given: Distribution, word: int) -> int:
    """The token that word / 2^53 falls on, in order of ids."""
    target = word * given.total >> 53
    return int(given.kept[torch.searchsorted(given.weights.cumsum(0), target, right=True)])


def weights_of(distances: Tensor) -> Tensor:
    """int64: round(2^42 e^-d) for float32 distances d >= 0, computed as the kernel does (fused multiply-adds)."""
    d = distances.clamp(max=40.0)
    shifted = fused(d, torch.tensor(1.44269504), torch.tensor(12582912.0))
    n = shifted - 12582912.0  # e^-d = 2^-n e^r
    r = fused(n, torch.tensor(0.693359375), -d)
    r = fused(n, torch.tensor(-2.12194440e-4), r)
    p = torch.tensor(1.9875691500e-4)
    for coefficient in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = fused(p, r, torch.tensor(coefficient))
    e = 1.0 + fused(p, r * r, r)
    fraction = (e.double() * 2.0**24).long()  # exact
    down = n.long() + 32 + 24 - WEIGHT_BITS
    weights = ((fraction << 32) + (torch.ones_like(down) << (down - 1).clamp(max=62))) >> down.clamp(max=63)
    return torch.where(distances < 30.5, weights, torch.zeros_like(weights))


def fused(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a * b + c of float32 with one rounding (float64 holds the product; ties after its own rounding are too rare)."""
    return (a.double() * b.double() + c.double()).float()


def log_probs(logits: Tensor, tokens: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """The model's own log-probabilities: before any adjustment, by temperature 1.

    logits [batch, vocab], tokens int32 [batch]. Returns those of `tokens` [batch], and ids [batch, top] (largest first,
    among equals the smaller id) and log-probabilities [batch, top] of the likeliest. Float32; NaN and -1 for a row
    whose logits hold NaN or no finite largest value, NaN where a token is -1.
    """
    exact = torch.log_softmax(logits.double(), dim=1)
    order = torch.argsort(logits.float(), dim=1, descending=True, stable=True)[:, :top]
    chosen = torch.where(tokens < 0, math.nan, exact.gather(1, tokens.clamp(min=0).long()[:, None])[:, 0])
    likeliest = exact.gather(1, order)
    unusable = ~torch.isfinite(logits.float().amax(dim=1)) | torch.isnan(logits.float()).any(dim=1)
    chosen[unusable], likeliest[unusable], order[unusable] = math.nan, math.nan, -1
    return chosen.float(), order.int(), likeliest.float()
