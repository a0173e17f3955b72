"""Random arrivals, cancels, deadlines and limits: nothing leaks, and nobody's tokens depend on the others."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from model_repo.runtime.contract import EngineSpec
from model_repo.runtime.engine import Engine
from model_repo.runtime.executor import BucketRule
from model_repo.runtime.request import Request, SamplingParams
from tests.runtime.drive import Client, Clock, alone
from tests.runtime.fake_executor import FakeExecutor, fake_spec
from tests.runtime.invariants import check_engine


class Arrival(NamedTuple):
    """A request, the step before which it comes, and the step before which it is cancelled, if it is."""

    step: int
    request: Request
    cancelled_at: int | None


@st.composite
def specs(draw: st.DrawFn) -> EngineSpec:
    block_size = draw(st.integers(1, 7))
    max_length = draw(st.integers(6, 40))
    fewest = -(-max_length // block_size)
    return fake_spec(
        max_batch=draw(st.integers(1, 6)),
        token_budget=draw(st.integers(3, 24)),
        max_length=max_length,
        block_size=block_size,
        num_blocks=fewest + draw(st.integers(0, 2 * fewest)),
        end_token_ids=draw(st.sampled_from([(), (3,)])),
    )


@st.composite
def arrivals(draw: st.DrawFn, max_length: int) -> list[Arrival]:
    common = draw(st.lists(st.integers(0, 2), min_size=0, max_size=max_length // 2))
    made = []
    for index in range(draw(st.integers(1, 7))):
        own = draw(st.lists(st.integers(0, 63), min_size=1, max_size=max(1, max_length // 2 - 1)))
        prompt = (common if draw(st.booleans()) else []) + own
        sampling = SamplingParams(
            max_tokens=draw(st.integers(1, 14)),
            temperature=draw(st.sampled_from([0.0, 1.0])),
            top_k=draw(st.sampled_from([0, 5])),
            repetition_penalty=draw(st.sampled_from([1.0, 1.3])),
            seed=draw(st.integers(0, 2**64 - 1)),
            logprobs=draw(st.sampled_from([None, 2])),
        )
        timeout = draw(st.one_of(st.none(), st.integers(1, 30)))
        cancelled = draw(st.one_of(st.none(), st.none(), st.integers(0, 30)))
        wanted = Request(f"r{index}", tuple(prompt[: max_length - 1]), sampling, timeout)
        made.append(Arrival(draw(st.integers(0, 12)), wanted, cancelled))
    return made


@st.composite
def scenarios(draw: st.DrawFn) -> tuple[EngineSpec, list[Arrival], BucketRule, bool]:
    spec = draw(specs())
    rule = draw(st.sampled_from([BucketRule(), BucketRule(2), BucketRule(1, 8)]))
    return spec, draw(arrivals(spec.max_length)), rule, draw(st.booleans())


@settings(max_examples=120, deadline=None, derandomize=True)
@given(scenarios())
def test_every_request_gets_the_tokens_it_gets_alone_and_all_blocks_come_back(
    scenario: tuple[EngineSpec, list[Arrival], BucketRule, bool],
) -> None:
    spec, plan, rule, share = scenario
    clock = Clock()
    engine = Engine(FakeExecutor(spec, bucket_rule=rule), spec, clock=clock, share_prefixes=share)
    play(engine, clock, plan)


def play(engine: Engine, clock: Clock, plan: list[Arrival]) -> None:
    """Steps, one a second, until all requests have ended. AssertionError where one did not get its tokens, or where
    blocks are lost.
    """
    client = Client(engine)
    for step in range(400):
        for arrival in plan:
            if arrival.step == step:
                client.submit(arrival.request)
            if arrival.cancelled_at == step:
                engine.cancel(arrival.request.request_id)
        busy = engine.step()
        check_engine(engine)
        clock.now += 1.0
        if not busy and step > 31:
            break
    assert not busy
    assert engine.stats()["kv_blocks_used"] == 0
    assert engine.stats()["waiting"] == engine.stats()["running"] == 0
    for arrival in plan:
        _check_outcome(client, arrival, engine.spec)


def _check_outcome(client: Client, arrival: Arrival, spec: EngineSpec) -> None:
    request_id = arrival.request.request_id
    expected = alone(spec, arrival.request)
    tokens, reason = client.tokens(request_id), client.reason(request_id)
    assert client.outputs[request_id][-1].error is None
    if reason in ("stop", "length"):
        assert (tuple(tokens), reason) == (expected.token_ids, expected.finish_reason)
        logprobs = [entry for output in client.outputs[request_id] for entry in output.logprobs]
        assert tuple(logprobs) == expected.logprobs
        return
    assert tuple(tokens) == expected.token_ids[: len(tokens)]
    if reason == "cancelled":
        assert arrival.cancelled_at is not None
    else:
        assert reason == "timeout"
        assert arrival.request.timeout_seconds is not None


@settings(max_examples=40, deadline=None, derandomize=True)
@given(specs(), st.data())
def test_steps_that_fail_at_random_end_their_own_requests_only(spec: EngineSpec, data: st.DataObject) -> None:
    plan = [replace_timeout(a) for a in data.draw(arrivals(spec.max_length))]
    failing = data.draw(st.sets(st.integers(0, 20), max_size=4))
    calls = iter(range(10_000))
    in_failed_steps: set[str] = set()

    def before_run(_: object) -> None:
        if next(calls) in failing:
            (plan,) = engine._scheduler.in_flight
            in_failed_steps.update(entry.sequence.request_id for entry in plan.entries)
            raise RuntimeError("the device is on fire")

    engine = Engine(FakeExecutor(spec, before_run=before_run), spec)
    client = Client(engine)
    for arrival in plan:
        client.submit(arrival.request)
    client.run()
    assert engine.stats()["kv_blocks_used"] == 0
    for arrival in plan:
        request_id = arrival.request.request_id
        last = client.outputs[request_id][-1]
        assert (last.finish_reason == "error") == (request_id in in_failed_steps)
        expected = alone(spec, arrival.request)
        assert tuple(client.tokens(request_id)) == expected.token_ids[: len(client.tokens(request_id))]
        if last.finish_reason == "error":
            assert "the device is on fire" in (last.error or "")
        else:
            assert last.finish_reason == expected.finish_reason


def replace_timeout(arrival: Arrival) -> Arrival:
    """The arrival without a deadline."""
    return arrival._replace(request=replace(arrival.request, timeout_seconds=None))
