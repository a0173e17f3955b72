"""Batching in flight: requests join, leave, are cut, preempted and share prefixes without changing a token."""

from __future__ import annotations

import pytest

from model_repo.runtime.request import Request, SamplingParams
from model_repo.runtime.sampler import Row, sample
from model_repo.runtime.step_log import StepRecord
from tests.runtime.drive import Client, alone, fake_engine, greedy, logged_engine, request
from tests.runtime.fake_executor import fake_spec, greedy_completion, logits_after


def _has_prefill_and_decode(step: StepRecord) -> bool:
    """Whether a step holds pieces of prompts beside single tokens of running requests."""
    return any(row.num_new_tokens > 1 for row in step.rows) and any(
        row.num_new_tokens == 1 and row.num_computed_tokens > 0 for row in step.rows
    )


def test_requests_join_and_leave_between_steps() -> None:
    engine, log = logged_engine(fake_spec(max_batch=4, token_budget=16))
    client = Client(engine)
    client.submit(request("first", range(5), greedy(20)))
    for _ in range(4):
        engine.step()
    client.submit(request("second", range(30, 42), greedy(4)))
    client.run()
    members = [{row.request_id for row in step.rows} for step in log.steps]
    assert members[:4] == [{"first"}] * 4
    assert members[4:8] == [{"first", "second"}] * 4
    assert members[8:] == [{"first"}] * 12
    assert _has_prefill_and_decode(log.steps[4])
    positions = [{row.num_computed_tokens for row in step.rows} for step in log.steps[5:8]]
    assert all(len(of_step) == 2 for of_step in positions), "both at the same position"
    assert client.tokens("first") == greedy_completion(range(5), 20)
    assert client.tokens("second") == greedy_completion(range(30, 42), 4)


def test_a_long_prompt_is_computed_in_chunks_beside_running_requests() -> None:
    engine, log = logged_engine(fake_spec(token_budget=8, max_length=64))
    client = Client(engine)
    client.submit(request("short", [1, 2], greedy(30)))
    engine.step()
    client.submit(request("long", range(40), greedy(3)))
    client.run()
    chunks = [row.num_new_tokens for step in log.steps for row in step.rows if row.request_id == "long"]
    assert chunks == [7, 7, 7, 7, 7, 5, 1, 1]
    beside = [step for step in log.steps if len(step.rows) == 2]
    assert sum(_has_prefill_and_decode(step) for step in beside) == 6
    assert client.tokens("long") == greedy_completion(range(40), 3)
    assert client.tokens("short") == greedy_completion([1, 2], 30)


@pytest.mark.parametrize("budget", range(3, 12))
def test_no_piece_of_a_prompt_is_a_single_token(budget: int) -> None:
    for length in range(2, 26):
        engine, log = logged_engine(fake_spec(token_budget=budget))
        completion = engine.generate([request("r", range(length), greedy(1))])[0]
        assert list(completion.token_ids) == greedy_completion(range(length), 1)
        chunks = [row.num_new_tokens for step in log.steps for row in step.rows]
        assert sum(chunks) == length
        assert min(chunks) >= 2


def test_more_requests_than_tokens_of_a_step_all_get_their_turn() -> None:
    engine, log = logged_engine(fake_spec(max_batch=6, token_budget=4))
    completions = engine.generate([request(f"r{i}", [i], greedy(8)) for i in range(6)])
    for i, completion in enumerate(completions):
        assert list(completion.token_ids) == greedy_completion([i], 8)
    assert max(len(step.rows) for step in log.steps) == 4


def test_one_token_that_is_left_of_a_step_is_not_spent_on_a_prompt() -> None:
    engine, log = logged_engine(fake_spec(max_batch=4, token_budget=4))
    client = Client(engine)
    for i in range(3):
        client.submit(request(f"r{i}", [i, i + 1], greedy(12)))
    for _ in range(4):
        engine.step()
    client.submit(request("long", range(20), greedy(2)))
    client.run()
    chunks = [row.num_new_tokens for step in log.steps for row in step.rows if row.request_id == "long"]
    assert client.tokens("long") == greedy_completion(range(20), 2)
    assert chunks[-1] == 1, "its second token"
    assert min(chunks[:-1]) >= 2


def test_each_output_token_has_a_random_number_of_its_own() -> None:
    sampling = SamplingParams(max_tokens=10, temperature=1.3, top_k=20, seed=99)
    completion = fake_engine().generate([Request("r", (3, 1, 4), sampling)])[0]
    tokens = [3, 1, 4]
    for position in range(10):
        row = Row(sampling, 99, position, None)
        tokens.append(sample(logits_after(tokens)[None], [row])[0].token_id)
    assert list(completion.token_ids) == tokens[3:]


def _crowd(sampling: SamplingParams) -> list[Request]:
    return [Request(f"r{i}", tuple(range(i, i + 6)), sampling) for i in range(4)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_preemption_happens_and_changes_no_token(temperature: float) -> None:
    sampling = SamplingParams(max_tokens=20, temperature=temperature, seed=11, repetition_penalty=1.2)
    tight = fake_spec(max_length=32, block_size=4, num_blocks=9)
    engine = fake_engine(tight)
    completions = engine.generate(_crowd(sampling))
    assert engine.stats()["preemptions"] > 0
    roomy = fake_engine(fake_spec(max_length=32, block_size=4, num_blocks=64))
    assert [c.token_ids for c in completions] == [c.token_ids for c in roomy.generate(_crowd(sampling))]
    assert roomy.stats().get("preemptions", 0) == 0
    assert all(len(completion.token_ids) == 20 for completion in completions)


def test_the_youngest_is_preempted_and_comes_back_first() -> None:
    engine, log = logged_engine(fake_spec(max_batch=2, max_length=16, block_size=4, num_blocks=5))
    client = Client(engine)
    for request_id, prompt in (("old", range(6)), ("young", range(10, 16)), ("late", [1])):
        client.submit(request(request_id, prompt, greedy(9)))
    client.run()
    last_steps = {row.request_id: index for index, step in enumerate(log.steps) for row in step.rows}
    assert engine.stats()["preemptions"] >= 1
    assert last_steps["old"] < last_steps["young"]
    assert last_steps["young"] <= last_steps["late"]


def test_a_seed_gives_the_same_tokens_alone_in_company_and_preempted() -> None:
    spec = fake_spec(max_length=32, num_blocks=9)
    sampling = SamplingParams(max_tokens=18, temperature=1.5, top_p=0.9, seed=5)
    wanted = Request("wanted", (4, 5, 6), sampling)
    expected = alone(spec, wanted).token_ids
    others = [Request(f"o{i}", tuple(range(i, i + 9)), SamplingParams(max_tokens=15)) for i in range(4)]
    engine = fake_engine(spec)
    completions = engine.generate([*others[:2], wanted, *others[2:]])
    assert engine.stats()["preemptions"] > 0
    assert completions[2].token_ids == expected
    different = alone(spec, Request("other seed", (4, 5, 6), SamplingParams(max_tokens=18, seed=6)))
    assert different.token_ids != expected


def test_shared_prefixes_save_work_and_change_nothing() -> None:
    spec = fake_spec(token_budget=8, max_length=64, block_size=4)
    prompts = [[*range(30), 40 + i] for i in range(5)]
    tokens: dict[bool, list[list[int]]] = {}
    rows: dict[bool, int] = {}
    steps: dict[bool, int] = {}
    for share in (False, True):
        engine, log = logged_engine(spec, share_prefixes=share)
        client = Client(engine)
        for index, prompt in enumerate(prompts):
            client.submit(request(f"r{index}", prompt, greedy(4)))
            client.run()
        tokens[share] = [client.tokens(f"r{index}") for index in range(len(prompts))]
        rows[share] = sum(row.num_new_tokens for step in log.steps for row in step.rows)
        steps[share] = len(log.steps)
    assert tokens[True] == tokens[False] == [greedy_completion(prompt, 4) for prompt in prompts]
    assert rows[False] - rows[True] == 4 * 28, "four prompts find seven blocks of four tokens each"
    assert steps[True] < steps[False]


def test_requests_that_run_together_share_blocks() -> None:
    engine = fake_engine(fake_spec(block_size=4, max_length=64, token_budget=64))
    client = Client(engine)
    prompt = list(range(18))
    client.submit(request("a", prompt, greedy(10)))
    engine.step()
    client.submit(request("b", prompt, greedy(10)))
    engine.step()
    assert engine.stats()["kv_blocks_used"] == 6, "four shared, and one of each"
    client.run()
    assert client.tokens("a") == client.tokens("b") == greedy_completion(prompt, 10)
    assert engine.stats()["kv_blocks_used"] == 0


def test_generated_tokens_are_not_shared() -> None:
    """Decoding rounds otherwise than a prompt's chunk: reuse would make bits depend on earlier company."""
    engine, log = logged_engine(fake_spec(block_size=4, max_length=64, token_budget=64))
    first = engine.generate([request("a", range(8), greedy(12))])[0]
    log.steps.clear()
    engine.generate([request("b", [*range(8), *first.token_ids], greedy(2))])
    assert log.steps[0].rows[0].num_computed_tokens == 8
