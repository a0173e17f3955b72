"""`paged_attention`: the kernels under the emulator against the reference, alone and in company, and the reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from plugins.checks import paged_attention as checks
from plugins.checks._paged_attention import BFLOAT, E4M3, INT8, Setup, alone, case_of, companies_of
from plugins.cuda.case import Case, Scale, raw_bytes
from plugins.cuda.company import differences
from plugins.cuda.emulated import Build, check, run
from plugins.reference.paged_attention import attend_pools

OPERATORS = ("paged_attention",)
PLAIN = Build("plain", OPERATORS)
NARROW_HEADS = ("SLIPWAY_MAX_HEAD_SIZE=64",)
"""The sanitizers' builds leave the other head sizes out: they take long to compile."""


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def outputs(case: Case, seed: int = 1) -> dict[str, torch.Tensor]:
    outcome = run([case], PLAIN, seed=seed)[0]
    assert outcome.code == 0, outcome.message
    return {name: outcome.tensors[name] for name in case.expected}


def test_the_kernels_give_what_the_reference_gives() -> None:
    assert check(checks.cases(Scale.SMALL, 1), PLAIN, seed=1) == {}


@pytest.mark.parametrize(("flavour", "seed"), [("asan", 2), ("tsan", 3)])
def test_the_sanitizers_find_nothing(flavour: str, seed: int) -> None:
    build = Build(flavour, OPERATORS, defines=NARROW_HEADS)
    assert check(checks.cases(Scale.QUICK, seed), build, seed=seed) == {}


SHARED = ((0, 0), (0, 128), (2, 0), (0, 192), (0, 128))
COMPANY = Setup(((200, 1), (150, 1), (40, 30), (260, 2), (129, 1)), heads=8, kv_heads=1, sinks=True)


@pytest.mark.parametrize(
    "setup",
    [
        COMPANY,
        replace(COMPANY, shared=SHARED),
        replace(COMPANY, shared=SHARED, dtype=BFLOAT, pool=INT8, scales="token"),
        replace(COMPANY, window=70, softcap=10.0, pool=E4M3),
    ],
    ids=["plain", "cascade", "cascade int8", "window fp8"],
)
def test_a_request_does_not_depend_on_its_company(setup: Setup) -> None:
    companies = list(companies_of(setup, random(4), range(len(setup.sequences))))
    outcomes = run([*(company.alone for company in companies), companies[0].among], PLAIN)
    assert [outcome.message for outcome in outcomes if outcome.code] == []
    for company, one in zip(companies, outcomes, strict=False):
        assert differences(company, one.tensors, outcomes[-1].tensors) == []


def test_shared_prefixes_read_once_give_the_same_bits() -> None:
    setup = replace(COMPANY, shared=SHARED, lse=True, alibi=True)
    shared = case_of(setup, random(5))
    apart = {k: v for k, v in shared.tensors.items() if not k.startswith("prefix_")}
    one, other = outputs(shared), outputs(replace(shared, tensors=apart))
    for name in one:
        assert torch.equal(raw_bytes(one[name]), raw_bytes(other[name])), name


def test_verifying_tokens_together_gives_the_bits_of_decoding_them_one_by_one() -> None:
    """Up to 16 rows and more of them are computed in different ways, which must not show."""
    setup = Setup(((100, 8), (20, 3)), heads=8, kv_heads=1, lse=True, write=False)
    together = case_of(setup, random(6))
    one = alone(together, setup, 0)
    decoding = []
    for token in range(8):
        tensors = {**one.tensors, "query": one.tensors["query"][token : token + 1]}
        tensors["past_seqlens"] = torch.tensor([100 + token], dtype=torch.int32)
        tensors["cumulative_sequence_length"] = torch.tensor([0, 1], dtype=torch.int32)
        expected = {
            **one.expected,
            **{k: one.expected[k][token : token + 1] for k in ("output", "log_sum_exp")},
        }
        decoding.append(replace(one, tensors=tensors, expected=expected))
    *decoded, verified = run([*decoding, together], PLAIN)
    for token, outcome in enumerate(decoded):
        assert outcome.code == 0, outcome.message
        for name in ("output", "log_sum_exp"):
            row = verified.tensors[name][token : token + 1]
            assert torch.equal(raw_bytes(outcome.tensors[name]), raw_bytes(row)), (name, token)


def test_the_order_of_threads_changes_no_bit() -> None:
    case = case_of(checks.QUICK[0], random(7))
    first = outputs(case)
    for seed in (2, 3):
        again = outputs(case, seed)
        assert all(torch.equal(raw_bytes(first[name]), raw_bytes(again[name])) for name in first)


def test_indices_out_of_range_are_found_where_indices_are_checked() -> None:
    good = case_of(Setup(((70, 1), (20, 3))), random(8))
    table = good.tensors["block_table"].clone()
    table[0, 2] = good.tensors["key_cache"].shape[0]
    blocks = replace(good, name="block", tensors={**good.tensors, "block_table": table})
    late = torch.tensor([70, 1000], dtype=torch.int32)
    length = replace(good, name="length", tensors={**good.tensors, "past_seqlens": late})
    other = case_of(Setup(((70, 1), (20, 3)), plan=True), random(8))
    stale = other.tensors["attention_metadata"].clone()
    stale[9] += 1
    plan = replace(other, tensors={**other.tensors, "attention_metadata": stale})
    cases = [
        replace(blocks, error="block_table names a block out of range"),
        replace(length, error="a sequence longer than its row of the block table"),
        replace(plan, name="plan", error="attention_metadata is the plan of another call"),
    ]
    assert check(cases, PLAIN) == {}


def test_the_references_scales_and_tree_mask() -> None:
    """Against torch's attention on the dequantized rows, with the tree as its mask."""
    generator = random(9)
    past, new, size = 13, 5, 32
    keys, values = (
        torch.randint(-127, 128, (2, 16, 2, size), generator=generator).to(INT8) for _ in range(2)
    )
    key_scale = torch.rand(2, 16, 2, generator=generator) / 64
    value_scale = torch.rand(2, generator=generator) / 64
    query = torch.randn(new, 4, size, generator=generator)
    tree = torch.rand(new, new, generator=generator) < 0.5
    tree.fill_diagonal_(True)
    table = torch.tensor([[1, 0]], dtype=torch.int32)
    got = attend_pools(
        query,
        keys,
        values,
        torch.tensor([0, new]),
        torch.tensor([past]),
        table,
        key_scale=key_scale,
        value_scale=value_scale,
        tree_mask=tree,
    )
    order = torch.cat([torch.arange(16, 32), torch.arange(16)])[: past + new]
    rows = (keys.float() * key_scale[..., None]).view(32, 2, size)[order]
    weights = (values.float() * value_scale[:, None]).view(32, 2, size)[order]
    mask = torch.cat(
        [torch.ones(new, past, dtype=torch.bool), tree & torch.ones(new, new).tril().bool()], dim=1
    )
    want = torch.nn.functional.scaled_dot_product_attention(
        query.transpose(0, 1), rows.transpose(0, 1), weights.transpose(0, 1), attn_mask=mask, enable_gqa=True
    )
    torch.testing.assert_close(got.output, want.transpose(0, 1), rtol=1e-5, atol=1e-5)
    scores = torch.einsum("qhd,khd->qhk", query, rows.repeat_interleave(2, dim=1)) * size**-0.5
    lse = scores.masked_fill(~mask[:, None, :], -torch.inf).logsumexp(dim=-1)
    torch.testing.assert_close(got.log_sum_exp, lse, rtol=1e-5, atol=1e-5)


def test_merging_parts_by_their_log_sum_exp_is_the_whole_in_float64() -> None:
    """What splitting rests on: softmax(s) v = sum over parts of exp(lse_part - lse) * output_part."""
    generator = random(10)
    scores = torch.randn(7, 300, generator=generator, dtype=torch.float64) * 5
    values = torch.randn(300, 16, generator=generator, dtype=torch.float64)
    whole = torch.softmax(scores, dim=-1) @ values
    parts = [slice(0, 64), slice(64, 128), slice(128, 192), slice(192, 300)]
    lse = torch.stack([scores[:, part].logsumexp(dim=-1) for part in parts])
    outputs = torch.stack([torch.softmax(scores[:, part], dim=-1) @ values[part] for part in parts])
    merged = (torch.exp(lse - lse.logsumexp(dim=0))[..., None] * outputs).sum(dim=0)
    torch.testing.assert_close(merged, whole, rtol=1e-13, atol=1e-13)
