"""How requests end: end tokens, lengths, stop texts, cancels, deadlines, failures; and what is refused."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from model_repo.runtime.contract import StepTensors
from model_repo.runtime.engine import Engine
from model_repo.runtime.errors import BadInput, Busy
from model_repo.runtime.output import Output
from model_repo.runtime.request import Request, SamplingParams
from tests.runtime.drive import Client, Clock, fake_engine, greedy, request
from tests.runtime.fake_executor import FakeExecutor, fake_spec, greedy_completion

PROMPT = (1, 2, 3)
NEXT = greedy_completion(PROMPT, 12)


def test_the_fake_models_first_tokens_differ() -> None:
    """The tests below cut at one of these tokens, so they must be told apart."""
    assert len(set(NEXT[:5])) == 5


def test_an_end_token_ends_and_is_the_last_token() -> None:
    engine = fake_engine(fake_spec(end_token_ids=(NEXT[3],)))
    completion = engine.generate([request("r", PROMPT, greedy(12))])[0]
    assert list(completion.token_ids) == NEXT[:4]
    assert completion.finish_reason == "stop"


def test_ignore_eos_goes_on_past_end_tokens_but_not_past_stop_tokens() -> None:
    engine = fake_engine(fake_spec(end_token_ids=(NEXT[3],)))
    sampling = greedy(12, ignore_eos=True)
    assert list(engine.generate([request("r", PROMPT, sampling)])[0].token_ids) == NEXT
    sampling = greedy(12, ignore_eos=True, stop_token_ids=(NEXT[2],))
    completion = engine.generate([request("r", PROMPT, sampling)])[0]
    assert list(completion.token_ids) == NEXT[:3]
    assert completion.finish_reason == "stop"


def test_the_engines_max_length_ends_a_request() -> None:
    engine = fake_engine(fake_spec(max_length=10))
    completion = engine.generate([request("r", PROMPT, greedy(1000))])[0]
    assert list(completion.token_ids) == NEXT[:7]
    assert completion.finish_reason == "length"


def test_outputs_come_token_by_token_with_counts_and_times() -> None:
    clock = Clock()
    engine = fake_engine(clock=clock)
    client = Client(engine)
    client.submit(request("r", PROMPT, greedy(3)))
    for _ in range(3):
        clock.now += 2.0
        engine.step()
    outputs = client.outputs["r"]
    assert [list(output.token_ids) for output in outputs] == [[token] for token in NEXT[:3]]
    assert [output.completion_tokens for output in outputs] == [1, 2, 3]
    assert [output.prompt_tokens for output in outputs] == [3, 3, 3]
    assert [output.seconds for output in outputs] == [2.0, 4.0, 6.0]
    assert [output.seconds_to_first_token for output in outputs] == [2.0, 2.0, 2.0]
    assert [output.finish_reason for output in outputs] == [None, None, "length"]
    assert engine.metrics.take_observations() == [
        ("time_to_first_token_seconds", 2.0),
        ("time_per_output_token_seconds", 2.0),
    ]


def test_cancel_ends_waiting_and_running_requests_and_frees_their_blocks() -> None:
    engine = fake_engine(fake_spec(max_batch=1))
    client = Client(engine)
    client.submit(request("running", PROMPT, greedy(20)))
    client.submit(request("waiting", PROMPT, greedy(20)))
    engine.step()
    engine.cancel("running")
    engine.cancel("waiting")
    engine.cancel("never heard of")
    assert not engine.step()
    assert client.reason("running") == client.reason("waiting") == "cancelled"
    assert client.tokens("running") == NEXT[:1]
    assert client.tokens("waiting") == []
    assert engine.stats()["kv_blocks_used"] == 0
    assert engine.stats()["requests_cancelled"] == 2


def test_a_cancel_that_comes_too_late_does_not_end_the_next_request_of_that_id() -> None:
    engine = fake_engine()
    client = Client(engine)

    def cancel_at_the_end(output: Output) -> None:
        if output.finish_reason is not None:
            engine.cancel("r")

    engine.submit(request("r", PROMPT, greedy(2)), cancel_at_the_end)
    engine.step()
    engine.step()  # its last: nothing but the end of the request may forget the cancel
    client.submit(request("r", PROMPT, greedy(2)))
    client.run()
    assert client.reason("r") == "length"


def test_deadlines_end_running_and_waiting_requests() -> None:
    clock = Clock()
    engine = fake_engine(fake_spec(max_batch=1), clock=clock)
    client = Client(engine)
    client.submit(replace(request("running", PROMPT, greedy(20)), timeout_seconds=5.0))
    client.submit(replace(request("waiting", PROMPT, greedy(20)), timeout_seconds=3.0))
    client.submit(request("patient", PROMPT, greedy(4)))
    engine.step()
    clock.now = 3.0
    engine.step()
    assert client.reason("waiting") == "timeout"
    assert client.reason("running") is None
    clock.now = 5.0
    engine.step()
    assert client.reason("running") == "timeout"
    assert client.tokens("running") == NEXT[:2]
    client.run()
    assert client.tokens("patient") == NEXT[:4]
    assert engine.stats()["requests_timeout"] == 2


def test_a_full_queue_answers_busy_and_takes_requests_again_later() -> None:
    engine = fake_engine(fake_spec(max_batch=1), max_queue=2)
    client = Client(engine)
    client.submit(request("a", PROMPT, greedy(3)))
    client.submit(request("b", PROMPT, greedy(3)))
    with pytest.raises(Busy, match=r"2 requests are waiting.*later"):
        client.submit(request("c", PROMPT, greedy(3)))
    assert engine.stats()["waiting"] == 2
    engine.step()
    client.submit(request("c", PROMPT, greedy(3)))
    client.run()
    assert [client.reason(name) for name in "abc"] == ["length"] * 3


def test_preempted_requests_do_not_count_against_the_queue() -> None:
    engine = fake_engine(fake_spec(max_batch=4, max_length=16, num_blocks=5), max_queue=1)
    client = Client(engine)
    for index in range(8):
        while engine.stats()["waiting"] >= 1:
            engine.step()
        client.submit(request(f"r{index}", [index, 1, 2, 3, 4], greedy(11)))
    client.run()
    assert engine.stats()["preemptions"] > 0
    assert engine.stats()["requests_length"] == 8


def test_generate_takes_more_requests_than_the_queue_holds() -> None:
    engine = fake_engine(max_queue=2)
    completions = engine.generate([request(f"r{i}", PROMPT, greedy(2)) for i in range(9)])
    assert [list(c.token_ids) for c in completions] == [NEXT[:2]] * 9


def test_a_sink_that_raises_ends_its_own_request_only(caplog: pytest.LogCaptureFixture) -> None:
    engine = fake_engine()
    client = Client(engine)
    calls: list[Output] = []

    def broken(output: Output) -> None:
        calls.append(output)
        raise ConnectionError("the client has gone")

    engine.submit(request("broken", PROMPT, greedy(20)), broken)
    client.submit(request("fine", PROMPT, greedy(6)))
    with caplog.at_level(logging.ERROR, logger="slipway"):
        client.run()
    assert len(calls) == 2
    assert calls[-1].finish_reason == "cancelled"
    assert client.tokens("fine") == NEXT[:6]
    assert "the client has gone" in caplog.text
    assert engine.stats()["kv_blocks_used"] == 0


def test_a_step_that_fails_ends_its_requests_and_no_others() -> None:
    spec = fake_spec(max_batch=2)
    failing = [False]

    def before_run(_: StepTensors) -> None:
        if failing[0]:
            failing[0] = False
            raise MemoryError("no room for the step")

    engine = Engine(FakeExecutor(spec, before_run=before_run), spec)
    client = Client(engine)
    for name in ("a", "b", "waits"):
        client.submit(request(name, PROMPT, greedy(5)))
    engine.step()
    failing[0] = True
    assert engine.step()
    for name in ("a", "b"):
        last = client.outputs[name][-1]
        assert last.finish_reason == "error"
        assert last.error == "the engine failed in this request's step: no room for the step"
    assert engine.stats()["kv_blocks_used"] == 0
    client.run()
    assert client.tokens("waits") == NEXT[:5]


@pytest.mark.parametrize("params", [greedy(5), SamplingParams(max_tokens=5, temperature=0.7, seed=1)])
def test_logits_that_are_no_numbers_end_their_own_request(params: SamplingParams) -> None:
    spec = fake_spec(max_batch=2)

    class Broken(FakeExecutor):
        """Gives NaN in the first row of the third step."""

        steps = 0

        def run(self, step: StepTensors) -> npt.NDArray[np.float32]:
            logits = super().run(step)
            self.steps += 1
            if self.steps == 3:
                logits[0, 5] = np.nan
            return logits

    engine = Engine(Broken(spec), spec)
    client = Client(engine)
    client.submit(request("a", PROMPT, params))
    client.submit(request("b", PROMPT, greedy(5)))
    client.run()
    last = client.outputs["a"][-1]
    assert (last.finish_reason, last.completion_tokens) == ("error", 2)
    assert "not numbers" in str(last.error)
    assert client.tokens("b") == NEXT[:5]
    assert engine.stats()["kv_blocks_used"] == 0


class NoTokenizer:
    """Fails on one token; otherwise one character a token."""

    def __init__(self, bad_token: int) -> None:
        self.bad_token = bad_token

    def decode(self, token_ids: Any) -> str:
        if self.bad_token in token_ids:
            raise ValueError("no such token")
        return "".join(chr(65 + token) for token in token_ids)


def test_a_tokenizer_that_fails_ends_the_request_of_its_tokens_only() -> None:
    engine = fake_engine(tokenizer=NoTokenizer(NEXT[1]))
    client = Client(engine)
    client.submit(request("bad", PROMPT, greedy(6)))
    client.submit(request("fine", (9, 9), greedy(6)))
    client.run()
    assert client.reason("bad") == "error"
    assert "no such token" in (client.outputs["bad"][-1].error or "")
    assert client.tokens("bad") == NEXT[:2]
    assert client.tokens("fine") == greedy_completion((9, 9), 6)
    assert NEXT[1] not in client.tokens("fine")


# ------------------------------------------------------------------ the loop's own thread


class Waiter:
    """A sink that says when its request is over."""

    def __init__(self) -> None:
        self.outputs: list[Output] = []
        self.started = threading.Event()
        self.over = threading.Event()

    def __call__(self, output: Output) -> None:
        self.outputs.append(output)
        self.started.set()
        if output.finish_reason is not None:
            self.over.set()

    def reason(self) -> str | None:
        assert self.over.wait(60)
        return self.outputs[-1].finish_reason


def test_the_thread_serves_requests_from_many_threads_and_drains() -> None:
    engine = fake_engine(fake_spec(max_batch=4))
    waiters = [Waiter() for _ in range(12)]
    engine.start()
    threads = [
        threading.Thread(target=engine.submit, args=(request(f"r{i}", (i, i + 1), greedy(9)), waiter))
        for i, waiter in enumerate(waiters)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert engine.drain(60)
    assert [waiter.reason() for waiter in waiters] == ["length"] * 12
    for i, waiter in enumerate(waiters):
        tokens = [token for output in waiter.outputs for token in output.token_ids]
        assert tokens == greedy_completion((i, i + 1), 9)
    with pytest.raises(Busy, match="shutting down"):
        engine.submit(request("late", PROMPT), Waiter())
    engine.stop()
    assert engine.stats()["kv_blocks_used"] == 0


def _gated_engine(spec: Any) -> tuple[Engine, threading.Event, threading.Event]:
    """An engine whose steps wait for `go`; `inside` says that one has begun."""
    go, inside = threading.Event(), threading.Event()

    def before_run(_: StepTensors) -> None:
        inside.set()
        assert go.wait(60)

    return Engine(FakeExecutor(spec, before_run=before_run), spec), go, inside


def test_drain_says_when_its_time_was_too_short() -> None:
    engine, go, inside = _gated_engine(fake_spec())
    waiter = Waiter()
    engine.submit(request("r", PROMPT, greedy(2)), waiter)
    engine.start()
    assert inside.wait(60)
    assert not engine.drain(0.0)
    go.set()
    assert engine.drain(60)
    assert waiter.reason() == "length"
    engine.stop()


def test_stop_ends_what_runs_and_waits_as_cancelled() -> None:
    engine, go, inside = _gated_engine(fake_spec(max_batch=1))
    running, waiting = Waiter(), Waiter()
    engine.submit(request("running", PROMPT, greedy(50)), running)
    engine.submit(request("waiting", PROMPT, greedy(50)), waiting)
    engine.start()
    assert inside.wait(60)
    go.set()
    assert running.started.wait(60)
    engine.stop()
    assert waiting.reason() == "cancelled"
    assert running.reason() in ("cancelled", "length")
    assert engine.stats()["kv_blocks_used"] == 0
    with pytest.raises(Busy, match="shutting down"):
        engine.submit(request("late", PROMPT), Waiter())
    with pytest.raises(RuntimeError, match="started once"):
        engine.start()


def test_cancel_reaches_a_request_of_the_running_thread() -> None:
    engine, go, inside = _gated_engine(fake_spec())
    waiter = Waiter()
    engine.submit(request("r", PROMPT, greedy(60)), waiter)
    engine.start()
    assert inside.wait(60)
    engine.cancel("r")
    go.set()
    assert waiter.reason() == "cancelled"
    engine.stop()


def test_a_fault_of_the_loop_ends_every_request_with_an_error() -> None:
    engine = fake_engine()

    def broken_plan() -> None:
        raise ZeroDivisionError("a bug")

    engine._scheduler.plan = broken_plan  # type: ignore[method-assign]
    waiter = Waiter()
    engine.submit(request("r", PROMPT), waiter)
    engine.start()
    assert waiter.reason() == "error"
    assert "a bug" in (waiter.outputs[-1].error or "")
    with pytest.raises(Busy):
        engine.submit(request("late", PROMPT), Waiter())
    engine.stop()


def test_generate_is_refused_while_the_thread_runs() -> None:
    engine = fake_engine()
    engine.start()
    with pytest.raises(RuntimeError, match="use submit"):
        engine.generate([request("r", PROMPT)])
    engine.stop()


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (range(64), ["64 tokens", "at most 63", "64", "Shorten"]),
        ((1, 64), ["64", "0 to 63"]),
        ((1, -1), ["-1", "0 to 63"]),
    ],
)
def test_prompts_that_do_not_fit_are_refused(prompt: Any, words: list[str]) -> None:
    engine = fake_engine()
    with pytest.raises(BadInput) as raised:
        engine.submit(request("r", prompt), lambda _: None)
    for word in words:
        assert word in str(raised.value)
    assert not engine.step()


def test_an_id_in_use_is_refused() -> None:
    engine = fake_engine()
    client = Client(engine)
    client.submit(request("r", PROMPT, greedy(2)))
    with pytest.raises(BadInput, match="'r' is in use"):
        client.submit(request("r", PROMPT))
    with pytest.raises(BadInput, match="two requests have the id 'x'"):
        engine.generate([request("x", PROMPT), request("x", PROMPT)])
    client.run()
    client.submit(request("r", PROMPT, greedy(2)))
    client.run()
    assert client.reason("r") == "length"


def test_stop_texts_need_a_tokenizer() -> None:
    with pytest.raises(BadInput, match="use stop_token_ids"):
        fake_engine().submit(request("r", PROMPT, greedy(stop=("x",))), lambda _: None)


@pytest.mark.parametrize("num_blocks", [0, -1, 15])
def test_pools_that_cannot_hold_one_request_are_refused(num_blocks: int) -> None:
    with pytest.raises(BadInput, match=str(num_blocks)):
        fake_engine(fake_spec(max_length=64, block_size=4), num_blocks=num_blocks)


def test_warm_up_leaves_nothing_behind() -> None:
    engine = fake_engine()
    engine.warm_up()
    assert engine.stats()["kv_blocks_used"] == 0
    assert engine.generate([Request("r", PROMPT, SamplingParams(max_tokens=1))])[0].finish_reason == "length"
