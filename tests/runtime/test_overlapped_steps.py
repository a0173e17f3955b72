"""The loop with a step in flight gives every request the tokens of the loop without, and ends requests as it does."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_repo.runtime.contract import EngineSpec, StepTensors
from model_repo.runtime.engine import Engine
from model_repo.runtime.errors import BadInput
from model_repo.runtime.executor import BucketRule, LaunchingExecutor
from model_repo.runtime.request import Request, SamplingParams
from model_repo.runtime.step_log import StepLog
from tests.runtime.drive import Client, Clock, alone, fake_engine, greedy, request
from tests.runtime.fake_encoder import cross_spec
from tests.runtime.fake_executor import FakeExecutor, fake_spec, greedy_completion
from tests.runtime.launching import ThreadedExecutor
from tests.runtime.test_engine_failures import NoTokenizer
from tests.runtime.test_engine_thread import Waiter
from tests.runtime.test_loop_properties import Arrival, arrivals, play, scenarios, specs

PROMPT = (1, 2, 3)
NEXT = greedy_completion(PROMPT, 12)


def overlapped(spec: EngineSpec | None = None, **options: object) -> tuple[Engine, ThreadedExecutor]:
    spec = spec or fake_spec()
    executor = ThreadedExecutor(FakeExecutor(spec))
    return Engine(executor, spec, **options), executor  # type: ignore[arg-type]


def test_the_executor_of_these_tests_launches_and_others_do_not() -> None:
    spec = fake_spec()
    assert isinstance(ThreadedExecutor(FakeExecutor(spec)), LaunchingExecutor)
    assert not isinstance(FakeExecutor(spec), LaunchingExecutor)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(scenarios())
def test_every_request_gets_the_tokens_it_gets_alone(
    scenario: tuple[EngineSpec, list[Arrival], BucketRule, bool],
) -> None:
    spec, plan, rule, share = scenario
    clock = Clock()
    executor = ThreadedExecutor(FakeExecutor(spec, bucket_rule=rule))
    engine = Engine(executor, spec, clock=clock, share_prefixes=share)
    play(engine, clock, plan)


def test_every_token_but_the_first_is_carried() -> None:
    engine, executor = overlapped()
    completion = engine.generate([request("r", PROMPT, greedy(12))])[0]
    assert list(completion.token_ids) == NEXT
    assert executor.num_carried == 11
    assert executor.num_launched == 12, "nothing is computed past a length that is known"
    assert executor.most_launched == 2


def test_a_step_is_launched_before_the_tokens_of_the_one_before_it_are_asked_for() -> None:
    gate = threading.Event()
    spec = fake_spec()

    def before_run(_: StepTensors) -> None:
        assert gate.wait(60)

    executor = ThreadedExecutor(FakeExecutor(spec, before_run=before_run))
    engine = Engine(executor, spec)
    client = Client(engine)
    client.submit(request("r", PROMPT, greedy(3)))
    engine.step()  # returns while the first step cannot have been computed
    assert executor.num_launched == 1
    assert client.tokens("r") == []
    gate.set()
    engine.step()
    assert executor.num_launched == 2
    assert client.tokens("r") == NEXT[:1]
    client.run()
    assert client.tokens("r") == NEXT[:3]


def test_what_was_computed_after_an_end_token_is_dropped() -> None:
    engine, executor = overlapped(fake_spec(end_token_ids=(NEXT[3],)))
    client = Client(engine)
    client.submit(request("r", PROMPT, greedy(12)))
    client.run()
    assert client.tokens("r") == NEXT[:4]
    assert client.reason("r") == "stop"
    assert client.outputs["r"][-1].completion_tokens == 4
    assert executor.num_launched == 5
    assert engine.stats()["kv_blocks_used"] == 0


def test_a_stop_string_ends_text_and_tokens_where_it_does_without_overlap() -> None:
    text = "".join(chr(65 + token) for token in NEXT)
    sampling = greedy(12, stop=(text[2:5],))
    engine, _ = overlapped(tokenizer=NoTokenizer(-1))
    client = Client(engine)
    client.submit(Request("r", PROMPT, sampling))
    client.run()
    expected = fake_engine(tokenizer=NoTokenizer(-1)).generate([Request("r", PROMPT, sampling)])[0]
    assert (client.text("r"), client.tokens("r"), client.reason("r")) == (text[:2], NEXT[:5], "stop")
    assert (expected.text, expected.token_ids, expected.finish_reason) == (text[:2], tuple(NEXT[:5]), "stop")
    assert engine.stats()["kv_blocks_used"] == 0


def test_a_repetition_penalty_waits_for_its_token_and_holds_nobody_else_up() -> None:
    log = StepLog()
    engine, executor = overlapped(step_log=log)
    penalized = greedy(8, repetition_penalty=1.5)
    completions = engine.generate([request("p", PROMPT, penalized), request("q", (4, 5), greedy(14))])
    assert completions[0].token_ids == alone(fake_spec(), request("p", PROMPT, penalized)).token_ids
    assert list(completions[1].token_ids) == greedy_completion((4, 5), 14)
    steps = {
        name: [i for i, s in enumerate(log.steps) if name in {r.request_id for r in s.rows}] for name in "pq"
    }
    assert steps["q"] == list(range(14))
    assert steps["p"] == list(range(0, 16, 2))[: len(steps["p"])]
    assert executor.num_carried == 13, "the other's alone"


def test_preemption_waits_for_the_step_in_flight() -> None:
    spec = fake_spec(max_length=32, block_size=4, num_blocks=9)
    sampling = SamplingParams(max_tokens=20, temperature=1.0, seed=11)
    requests = [Request(f"r{i}", tuple(range(i, i + 6)), sampling) for i in range(4)]
    engine, executor = overlapped(spec)
    client = Client(engine)
    for one in requests:
        client.submit(one)
    client.run()
    assert engine.stats()["preemptions"] > 0
    assert executor.num_carried > 0
    for one in requests:
        assert tuple(client.tokens(one.request_id)) == alone(spec, one).token_ids


def test_chunks_of_a_long_prompt_follow_one_another_without_waiting() -> None:
    spec = fake_spec(token_budget=8, max_length=64)
    log = StepLog()
    engine, executor = overlapped(spec, step_log=log)
    completions = engine.generate(
        [request("short", (1, 2), greedy(12)), request("long", range(40), greedy(3))]
    )
    assert list(completions[0].token_ids) == greedy_completion((1, 2), 12)
    assert list(completions[1].token_ids) == greedy_completion(range(40), 3)
    chunks = [row.num_new_tokens for step in log.steps for row in step.rows if row.request_id == "long"]
    assert sum(chunks) == 42
    assert min(chunks[:-2]) >= 2
    assert executor.most_launched == 2


# ------------------------------------------------------------------ failures


def failing_engine(spec: EngineSpec, failing: set[int]) -> tuple[Engine, list[list[str]]]:
    """An engine whose steps of these numbers fail on the device, and the members of each step."""

    class Failing(FakeExecutor):
        """Fails when the cache is written: the fake model asserts that it finds its own positions there."""

        def run(self, step: StepTensors) -> npt.NDArray[np.float32]:
            logits = super().run(step)
            if self.num_steps - 1 in failing:
                raise MemoryError("no room for the step")
            return logits

    engine = Engine(ThreadedExecutor(Failing(spec)), spec)
    members: list[list[str]] = []
    plan = engine._scheduler.plan

    def kept_plan() -> object:
        made = plan()
        if made is not None:
            members.append([entry.sequence.request_id for entry in made.entries])
        return made

    engine._scheduler.plan = kept_plan  # type: ignore[method-assign, assignment]
    return engine, members


def test_a_failed_step_ends_its_requests_also_in_the_step_behind_it_and_no_others() -> None:
    engine, members = failing_engine(fake_spec(max_batch=4), {2})
    client = Client(engine)
    client.submit(request("a", PROMPT, greedy(9)))
    client.submit(request("b", (4, 5), greedy(9)))
    for _ in range(3):
        engine.step()
    client.submit(request("joins", (6, 7), greedy(5)))  # with the step that runs behind the failing one
    client.run()
    assert members[2] == ["a", "b"]
    assert members[3] == ["a", "b", "joins"]
    for name in ("a", "b"):
        assert (
            client.outputs[name][-1].error == "the engine failed in this request's step: no room for the step"
        )
        assert len(client.tokens(name)) == 2
    assert client.tokens("joins") == greedy_completion((6, 7), 5)
    assert engine.stats()["kv_blocks_used"] == 0


@settings(max_examples=40, deadline=None, derandomize=True)
@given(specs(), st.data())
def test_steps_that_fail_at_random_end_their_own_requests_only(spec: EngineSpec, data: st.DataObject) -> None:
    plan = [replace(a.request, timeout_seconds=None) for a in data.draw(arrivals(spec.max_length))]
    failing = data.draw(st.sets(st.integers(0, 20), max_size=4))
    engine, members = failing_engine(spec, failing)
    client = Client(engine)
    for one in plan:
        client.submit(one)
    client.run()
    assert engine.stats()["kv_blocks_used"] == 0
    in_failed = {name for number in failing if number < len(members) for name in members[number]}
    for one in plan:
        expected = alone(spec, one)
        tokens, reason = client.tokens(one.request_id), client.reason(one.request_id)
        assert tuple(tokens) == expected.token_ids[: len(tokens)]
        if reason == "error":
            assert one.request_id in in_failed
        else:
            assert (tuple(tokens), reason) == (expected.token_ids, expected.finish_reason)


def test_a_launch_that_is_refused_ends_its_requests_after_the_step_before_it() -> None:
    spec = fake_spec()

    class Refusing(ThreadedExecutor):
        def launch(self, step: StepTensors, rows: object, carried: object) -> object:  # type: ignore[override]
            if self.num_launched == 3:
                self.num_launched += 1
                raise ValueError("17 rows are outside the profile")
            return super().launch(step, rows, carried)  # type: ignore[arg-type]

    engine = Engine(Refusing(FakeExecutor(spec)), spec)  # type: ignore[arg-type]
    client = Client(engine)
    client.submit(request("r", PROMPT, greedy(9)))
    client.run()
    assert client.tokens("r") == NEXT[:3]
    assert "outside the profile" in (client.outputs["r"][-1].error or "")
    client.submit(request("next", PROMPT, greedy(4)))
    client.run()
    assert client.tokens("next") == NEXT[:4]


def test_logits_that_are_no_numbers_end_their_own_request() -> None:
    spec = fake_spec()

    class Broken(FakeExecutor):
        """Gives NaN in the first row of the third step."""

        def run(self, step: StepTensors) -> npt.NDArray[np.float32]:
            logits = super().run(step)
            if self.num_steps == 3:
                logits[0, 5] = np.nan
            return logits

    engine = Engine(ThreadedExecutor(Broken(spec)), spec)
    client = Client(engine)
    client.submit(request("a", PROMPT, greedy(6)))
    client.submit(request("b", PROMPT, greedy(6)))
    client.run()
    assert (client.reason("a"), client.tokens("a")) == ("error", NEXT[:2])
    assert client.tokens("b") == NEXT[:6]
    assert engine.stats()["kv_blocks_used"] == 0


# ------------------------------------------------------------------ the loop's own thread


def test_the_thread_serves_drains_and_stops() -> None:
    engine, executor = overlapped(fake_spec(max_batch=4))
    waiters = [Waiter() for _ in range(8)]
    engine.start()
    for i, waiter in enumerate(waiters):
        engine.submit(request(f"r{i}", (i, i + 1), greedy(9)), waiter)
    assert engine.drain(60)
    for i, waiter in enumerate(waiters):
        assert waiter.reason() == "length"
        tokens = [token for output in waiter.outputs for token in output.token_ids]
        assert tokens == greedy_completion((i, i + 1), 9)
    engine.stop()
    assert engine.stats()["kv_blocks_used"] == 0
    assert executor.most_launched == 2


def test_stop_waits_for_the_step_in_flight_and_frees_its_blocks() -> None:
    engine, _ = overlapped()
    waiter = Waiter()
    engine.submit(request("r", PROMPT, greedy(60)), waiter)
    engine.start()
    assert waiter.started.wait(60)
    engine.stop()
    assert waiter.reason() == "cancelled"
    assert engine.stats()["kv_blocks_used"] == 0
    assert not engine._scheduler.in_flight


def test_a_fault_of_the_loop_waits_for_the_step_in_flight_and_can_be_stopped_after() -> None:
    engine, executor = overlapped()
    commit, calls = engine._scheduler.commit, iter(range(100))

    def broken_commit(*given: object) -> object:
        if next(calls) == 3:
            raise ZeroDivisionError("a bug")
        return commit(*given)  # type: ignore[arg-type]

    engine._scheduler.commit = broken_commit  # type: ignore[method-assign, assignment]
    waiter = Waiter()
    engine.submit(request("r", PROMPT, greedy(60)), waiter)
    engine.start()
    assert waiter.reason() == "error"
    assert "a bug" in (waiter.outputs[-1].error or "")
    engine.stop()
    assert executor.num_open == 0


def test_an_engine_with_an_encoder_is_refused() -> None:
    spec = cross_spec()
    with pytest.raises(
        BadInput, match="has an encoder, which executors that sample on the device do not run"
    ):
        Engine(ThreadedExecutor(FakeExecutor(spec)), spec)
