"""The loop's own thread: requests from many threads, drains, stops and cancels."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from model_repo.runtime.contract import StepTensors
from model_repo.runtime.engine import Engine
from model_repo.runtime.errors import Busy
from model_repo.runtime.output import Output
from tests.runtime.drive import fake_engine, greedy, request
from tests.runtime.fake_executor import FakeExecutor, fake_spec, greedy_completion

PROMPT = (1, 2, 3)
NEXT = greedy_completion(PROMPT, 12)


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
