"""`speculative`: the kernels under the emulator against the reference, and what the reference emits is the target's."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from plugins.checks import speculative as checks
from plugins.cuda.case import Case, Scale
from plugins.cuda.emulated import Build, check
from plugins.reference.sampling import Distribution, sampling
from plugins.reference.speculative import residual, shares, speculative
from tests.plugins.cuda.emulation import SMALL_UNDER_ASAN, dependent, wrong

OPERATORS = ("speculative",)
VOCAB, DRAFTS = 7, 2


@SMALL_UNDER_ASAN
def test_kernels_give_what_the_reference_gives(flavour: str, scale: str, seed: int) -> None:
    assert wrong(checks, OPERATORS, flavour, scale, seed) == {}


def test_a_request_does_not_depend_on_the_others() -> None:
    assert dependent(checks, OPERATORS) == []


def test_cases_accept_and_reject() -> None:
    """Every number of accepted drafts occurs, and tokens that were no drafts do."""
    found = set()
    for case in checks.cases(Scale.SMALL, 1):
        if case.error is None:
            drafts = case.tensors["draft_tokens"].shape[1]
            found |= {(drafts, int(count)) for count in case.expected["accepted"]}
    assert {(3, 0), (3, 1), (3, 2), (3, 3), (2, 0), (2, 1), (2, 2), (0, 0)} <= found


def requests(count: int, filters: dict[str, float], certain: bool) -> tuple[dict[str, Tensor], Tensor]:
    """Many requests of the same target and draft distributions, and the target's [DRAFTS + 1, VOCAB] in float64.

    The draft distributions are unlike the target's; drafts are drawn from them, or (certain) are token 2 and 0.
    """
    generator = torch.Generator().manual_seed(11)
    logits = torch.randn(DRAFTS + 1, VOCAB, generator=generator) * 1.3
    drafted = torch.softmax(torch.randn(DRAFTS, VOCAB, generator=generator), dim=-1)
    tokens = torch.multinomial(drafted, count, replacement=True, generator=generator).t()
    tensors = {
        "logits": logits.expand(count, -1, -1).contiguous(),
        "draft_tokens": tokens.int().contiguous(),
        "draft_probs": drafted.expand(count, -1, -1).contiguous(),
        "seed": torch.randint(-(2**63), 2**63 - 1, (count,), generator=generator).view(torch.uint64),
        "position": torch.randint(0, 1000, (count,), generator=generator, dtype=torch.int32),
    }
    tensors |= {
        name: torch.full((count,), value, dtype=torch.int32 if name == "top_k" else torch.float32)
        for name, value in filters.items()
    }
    if certain:
        del tensors["draft_probs"]
        tensors["draft_tokens"] = torch.tensor([2, 0], dtype=torch.int32).repeat(count, 1)
    target = torch.softmax(logits.double() / filters.get("temperature", 1.0), dim=-1)
    for row in target:
        order = row.argsort(descending=True)
        outside = row[order].cumsum(0) - row[order] >= filters.get("top_p", 1.0)
        outside |= torch.arange(VOCAB) >= filters.get("top_k", VOCAB)
        row[order[outside]] = 0.0
    return tensors, target / target.sum(dim=-1, keepdim=True)


def assert_distributed(tokens: Tensor, target: Tensor) -> None:
    """Pearson's chi-square. Beyond mean + 5 standard deviations of the statistic is a fault."""
    expected = target * len(tokens)
    counts = torch.bincount(tokens.long(), minlength=VOCAB).double()
    assert bool((counts[expected == 0] == 0).all())
    often = expected >= 5
    statistic = float(((counts - expected)[often] ** 2 / expected[often]).sum())
    freedom = max(int(often.sum()) - 1, 1)
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("certain", [False, True], ids=["probabilities", "certain"])
@pytest.mark.parametrize(
    "filters", [{}, {"temperature": 0.6, "top_p": 0.8}, {"top_k": 3, "temperature": 1.5}], ids=str
)
def test_what_is_emitted_is_distributed_as_the_target(filters: dict[str, float], certain: bool) -> None:
    tensors, target = requests(2500, filters, certain)
    accepted, tokens = speculative(tensors)
    assert_distributed(tokens[:, 0], target[0])
    for place in range(1, DRAFTS + 1):
        assert_distributed(tokens[accepted >= place, place], target[place])
    shares_of_drafts = torch.minimum(target[:-1], tensors["draft_probs"][0].double()) if not certain else None
    if shares_of_drafts is not None:  # the chance of acceptance is the overlap of the two distributions
        overlap = float(shares_of_drafts[0].sum())
        assert float((accepted > 0).double().mean()) == pytest.approx(overlap, abs=0.05)


def test_the_kernel_emits_what_the_reference_emits_for_many_requests() -> None:
    tensors, _ = requests(200, {"temperature": 0.6, "top_p": 0.8}, certain=False)
    accepted, tokens = speculative(tensors)
    case = Case("many", "speculative", tensors, {"accepted": accepted, "tokens": tokens})
    assert check([case], Build("plain", OPERATORS)) == {}


def test_without_drafts_it_is_sampling() -> None:
    tensors = checks.inputs_of(checks.Setup("none", 60, batch=20, drafts=0, logits=("normal", "peaked")), 3)
    accepted, tokens = speculative(tensors)
    alone = sampling({**tensors, "logits": tensors["logits"][:, 0]})
    assert torch.equal(tokens[:, 0], alone.token)
    assert int(accepted.count_nonzero()) == 0


def test_residual_is_what_the_target_has_more() -> None:
    weights = torch.tensor([2**40, 2**41, 2**40])
    given = Distribution(torch.tensor([1, 4, 6]), weights, torch.zeros(8))
    drafted = torch.zeros(8).index_fill(0, torch.tensor([4]), 0.25).index_fill(0, torch.tensor([6]), 0.75)
    assert residual(given, drafted).weights.tolist() == [2**40, 2**40, 0]
    same = torch.zeros(8).index_copy(0, given.kept, weights.float() / 2.0**42)
    assert residual(given, same).weights.tolist() == weights.tolist()


def test_shares_are_exact() -> None:
    generator = torch.Generator().manual_seed(2)
    exponents = torch.randint(-60, 1, (300,), generator=generator).float()
    probabilities = torch.rand(300, generator=generator) * torch.exp2(exponents)
    special = torch.tensor([0.0, 1.0, 2.0, -1.0, math.nan, 1e-40, 0.5, 1 - 2.0**-24])
    for total in (1, 2**42, 2**62, 2**62 - 12345678901):
        got = shares(torch.cat([probabilities, special]), total)
        want = [int(p * 2.0**149) * total >> 149 for p in probabilities.double().tolist()]
        assert got[:300].tolist() == want
        tail = [0, total, total, 0, 0, 0, total >> 1, (2**24 - 1) * total >> 24]
        assert got[300:].tolist() == tail
