"""The CPU operator against the reference: every instruction set, every feature alone and all together."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.plugins.attention_case import Shape, Step, check, expected, forced_isa, make_step, run, session

MIXED = [(37, 1), (0, 23), (5, 1), (0, 1), (70, 9), (0, 0), (130, 2), (3, 40), (300, 1)]
"""(tokens in the cache, new tokens): decode, prefill and chunks with a past in one step; one sequence rests."""

FEATURES = {
    "plain": Shape(),
    "multi-head": Shape(heads=3, kv_heads=3),
    "one key head": Shape(heads=5, kv_heads=1, head_dim=16),
    "wide group": Shape(heads=14, kv_heads=2, head_dim=16),
    "head 64": Shape(heads=9, kv_heads=3, head_dim=64, packed=True, rotary_dim=64),
    "head 128": Shape(heads=4, kv_heads=2, head_dim=128),
    "head 80": Shape(head_dim=80, rotary_dim=32),
    "odd head": Shape(head_dim=17, heads=4),
    "one element": Shape(head_dim=1, heads=2),
    "value size apart": Shape(head_dim=48, value_dim=20),
    "wide value": Shape(head_dim=16, value_dim=112),
    "scale": Shape(scale=0.5),
    "softcap": Shape(softcap=2.0),
    "window": Shape(window=20),
    "window 1": Shape(window=1),
    "window over tiles": Shape(window=150),
    "sinks": Shape(sinks=True),
    "alibi": Shape(alibi=True),
    "distance bias": Shape(distances=29),
    "distance bias over tiles": Shape(heads=3, kv_heads=3, distances=129),
    "one distance": Shape(distances=1),
    "rotary": Shape(rotary_dim=32),
    "rotary, interleaved": Shape(rotary_dim=32, interleaved=True),
    "rotary, partial": Shape(rotary_dim=12),
    "rotary, partial, interleaved": Shape(rotary_dim=10, interleaved=True),
    "packed": Shape(packed=True),
    "float16 pools": Shape(pool="float16", head_dim=64),
    "bfloat16 pools": Shape(pool="bfloat16", head_dim=64),
    "odd float16": Shape(pool="float16", head_dim=21, value_dim=13),
    "all at once": Shape(
        heads=6,
        kv_heads=2,
        head_dim=24,
        value_dim=40,
        block_size=8,
        pool="bfloat16",
        rotary_dim=8,
        interleaved=True,
        sinks=True,
        alibi=True,
        distances=18,
        softcap=3.0,
        window=21,
        scale=0.3,
    ),
}


@pytest.mark.parametrize("isa", ["plain", "avx2", "avx512"])
@pytest.mark.parametrize("feature", FEATURES)
def test_matches_the_reference(isa: str, feature: str) -> None:
    with forced_isa(isa):
        check(make_step(FEATURES[feature], MIXED, padding=3))


@pytest.mark.parametrize("block_size", [1, 7, 8, 16, 32, 64, 128, 256])
def test_block_sizes(block_size: int) -> None:
    check(make_step(Shape(block_size=block_size), MIXED))
    check(make_step(Shape(block_size=block_size, window=33, pool="float16"), MIXED))


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 200])
def test_lengths_around_the_tiles(length: int) -> None:
    """Prefill of that length, decode at it, and a chunk that ends there."""
    check(make_step(Shape(head_dim=64), [(0, length), (length, 1), (length, 3)]))


def test_slot_minus_one_writes_nothing() -> None:
    """A token without a slot attends to the cache as it is; its key and value go nowhere."""
    step = make_step(Shape(), [(20, 4), (6, 1)])
    slots = step.inputs["slot_mapping"].clone()
    slots[[1, 4]] = -1
    filled = {name: torch.nan_to_num(step.inputs[name], nan=0.25) for name in ("key_cache", "value_cache")}
    check(step.with_inputs(slot_mapping=slots, **filled))


def test_sequences_share_blocks_and_see_rows_of_the_same_step() -> None:
    """Two sequences with one prompt: the second reads the block that the first writes in this very step."""
    step = make_step(Shape(), [(0, 16), (16, 5)])
    table = step.inputs["block_table"].clone()
    table[1, 0] = table[0, 0]
    check(step.with_inputs(block_table=table))


def test_padding_rows_are_zero_and_their_slots_are_not_used() -> None:
    step = make_step(Shape(rotary_dim=32), [(9, 1), (0, 3)], padding=4)
    slots = step.inputs["slot_mapping"].clone()
    slots[step.live_tokens :] = 0
    result = check(step.with_inputs(slot_mapping=slots))
    assert not result.output[step.live_tokens :].any()


def test_no_live_token() -> None:
    step = make_step(Shape(), [(5, 0), (0, 0)], padding=2)
    assert not check(step).output.any()


def test_large_scores_do_not_overflow() -> None:
    """Scores of some thousands (whose last bit is 1e-4): the softmax is relative to the running maximum."""
    step = make_step(Shape(head_dim=64), [(150, 1), (0, 90)])
    check(step.with_inputs(query=step.inputs["query"] * 300), tolerance=1e-3)


def test_pool_outputs_make_the_operator_functional() -> None:
    """With the pools as outputs the inputs stay as they were, and the outputs hold the new rows."""
    step = make_step(Shape(rotary_dim=32), MIXED[:4])
    pools = {name: torch.nan_to_num(step.inputs[name]) for name in ("key_cache", "value_cache")}
    step = step.with_inputs(**pools)
    before = {name: tensor.clone() for name, tensor in step.inputs.items()}
    running = session(step.shape, frozenset(step.inputs), outputs=3, threads=1)
    found = running.run(None, {name: tensor.numpy() for name, tensor in step.inputs.items()})
    for name, tensor in before.items():
        assert torch.equal(step.inputs[name], tensor), f"input {name} was changed"
    for array, wanted in zip(found, expected(step), strict=True):
        torch.testing.assert_close(torch.from_numpy(array), wanted, rtol=1e-5, atol=2e-5)


def test_concurrent_runs_of_one_session() -> None:
    """Four threads in one session at once, each with its own step: all scratch is per thread."""
    steps = [make_step(Shape(head_dim=64), [(past, 1), (0, past)], seed=past) for past in range(60, 100, 5)]
    wanted = [run(step, threads=1).output for step in steps]
    with ThreadPoolExecutor(max_workers=4) as pool:
        for _ in range(5):
            found = list(pool.map(lambda step: run(step, threads=1).output, steps))
            assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def rows_of(step: Step, sequence: int) -> slice:
    cumulative = step.inputs["cumulative_sequence_length"]
    return slice(int(cumulative[sequence]), int(cumulative[sequence + 1]))


def alone(step: Step, sequence: int) -> Step:
    """The same step with one sequence only, in the same pools."""
    rows = rows_of(step, sequence)
    per_token = ("query", "key", "value", "slot_mapping", "position_ids")
    inputs = {name: x[rows] if name in per_token else x for name, x in step.inputs.items()}
    for name in ("past_seqlens", "block_table"):
        inputs[name] = inputs[name][sequence : sequence + 1]
    inputs["cumulative_sequence_length"] = torch.tensor([0, rows.stop - rows.start], dtype=torch.int32)
    return Step(step.shape, inputs)


@pytest.mark.parametrize("isa", ["plain", "avx2", "avx512"])
@pytest.mark.parametrize("feature", ["head 64", "wide group", "value size apart", "all at once"])
def test_bit_identical_alone_and_in_company(isa: str, feature: str) -> None:
    """Each of 16 sequences has the same bits alone, among the others, and on one thread or two."""
    company = [*MIXED, (200, 1), (1, 1), (64, 64), (0, 150), (63, 2), (17, 1), (250, 3)]
    step = make_step(FEATURES[feature], company, padding=5)
    with forced_isa(isa):
        together = run(step, threads=2).output
        assert torch.equal(together, run(step, threads=1).output)
        for sequence in range(len(company)):
            single = run(alone(step, sequence), threads=1).output
            assert torch.equal(single, together[rows_of(step, sequence)]), f"sequence {sequence}"


@pytest.mark.parametrize("isa", ["plain", "avx2", "avx512"])
@pytest.mark.parametrize("feature", ["head 64", "odd head", "wide value", "odd float16", "all at once"])
def test_bit_identical_however_a_prompt_is_cut(isa: str, feature: str) -> None:
    """Rows have the same bits computed in one chunk, in several, or one by one as decode."""
    step = make_step(FEATURES[feature], [(0, 150)])
    whole_table = torch.where(step.inputs["block_table"] < 0, 0, step.inputs["block_table"])
    with forced_isa(isa):
        whole = run(step)
        start = 0
        for size in (1, 2, 40, 5, 1, 1, 14, 1, 64, 20, 1):
            rows = slice(start, start + size)
            names = [n for n in ("query", "key", "value", "slot_mapping", "position_ids") if n in step.inputs]
            chunk = step.with_inputs(
                **{name: step.inputs[name][rows] for name in names},
                cumulative_sequence_length=torch.tensor([0, size], dtype=torch.int32),
                past_seqlens=torch.tensor([start], dtype=torch.int32),
                block_table=whole_table,
                key_cache=whole.key_cache,
                value_cache=whole.value_cache,
            )
            assert torch.equal(run(chunk).output, whole.output[rows]), f"rows {start} to {rows.stop}"
            start = rows.stop
    assert start == 150
