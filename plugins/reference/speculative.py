"""What `speculative` means: one request after the other, to the bit.

Leviathan et al., "Fast inference from transformers via speculative decoding", 2023, https://arxiv.org/abs/2211.17192;
Chen et al., "Accelerating large language model decoding with speculative sampling", 2023,
https://arxiv.org/abs/2302.01318.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .sampling import (
    NO_TOKEN,
    Distribution,
    adjusted_row,
    distribution,
    draw,
    parameters_of,
    philox_words,
)


def speculative(tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Accepts drafts. `tensors`: the operator's inputs by name.

    Returns (accepted int32 [batch], tokens int32 [batch, drafts + 1]): the accepted drafts, one more token, then -1.
    """
    batch, places, _ = tensors["logits"].shape
    accepted = torch.zeros(batch, dtype=torch.int32)
    tokens = torch.full((batch, places), NO_TOKEN, dtype=torch.int32)
    for request in range(batch):
        drafts = tensors["draft_tokens"][request].tolist()
        for place in range(places):
            draft = drafts[place] if place < places - 1 else -1
            tokens[request, place], is_draft = _token_at(tensors, request, place, draft)
            if not is_draft:
                break
            accepted[request] += 1
    return accepted, tokens


def _token_at(tensors: Mapping[str, Tensor], request: int, place: int, draft: int) -> tuple[int, bool]:
    """The token at one place, and whether it is the draft, accepted. A draft outside the vocabulary is none."""
    logits = tensors["logits"][request, place].float()
    masks = {"allowed_tokens": tensors["allowed_tokens"][request]} if "allowed_tokens" in tensors else {}
    values = adjusted_row(logits, masks, place, None)
    parameters = parameters_of(tensors, request)
    if values is None:
        return NO_TOKEN, False
    if parameters.greedy:
        likeliest = int(values.argmax())
        return likeliest, likeliest == draft
    target = distribution(values, parameters)
    draw_word, accept_word = philox_words(tensors, request, place)
    if not 0 <= draft < len(values):
        return draw(target, draw_word), False
    drafted = None
    if "draft_probs" in tensors:
        drafted = tensors["draft_probs"][request, place]
    if _accepts(target, draft, 1.0 if drafted is None else float(drafted[draft]), accept_word):
        return draft, True
    if drafted is None:
        drafted = torch.zeros(len(values)).index_fill(0, torch.tensor([draft]), 1.0)
    return draw(residual(target, drafted), draw_word), False


def _accepts(target: Distribution, draft: int, drafted: float, word: int) -> bool:
    weight = int(target.weights[target.kept == draft].sum())
    return word * 2.0**-53 * drafted * float(target.total) < float(weight)


def residual(target: Distribution, drafted: Tensor) -> Distribution:
    """max(0, p - q) over the kept tokens, in the unit of their weights; p itself where nothing is left.

    drafted: q, float32 [vocab]. q's share of the total weight is rounded down.
    """
    weights = target.weights - shares(drafted[target.kept], target.total)
    weights = weights.clamp(min=0)
    if int(weights.sum()) == 0:
        return target
    return Distribution(target.kept, weights, target.distances)


def shares(probabilities: Tensor, total: int) -> Tensor:
    """int64: floor(probability * total), exact for float32 probabilities (below 2^-126: 0; from 1 on: total)."""
    fraction, exponent = torch.frexp(probabilities.clamp(min=0.0, max=1.0).float())
    wide = (fraction.double() * 2.0**24).long()  # probability = wide * 2^(exponent - 24)
    # floor(wide * total / 2^24) from 31-bit halves of total: int64 cannot hold the product.
    high = (wide * (total >> 31) << 7) + (wide * (total & 0x7FFFFFFF) >> 24)
    share = high >> (-exponent).long().clamp(min=0, max=63)
    normal = probabilities >= torch.finfo(torch.float32).tiny
    return torch.where(probabilities >= 1, total, torch.where(normal, share, 0))
