"""How requests end: end tokens, lengths, cancels, deadlines."""

from __future__ import annotations

from dataclasses import replace

from model_repo.runtime.output import Output
from model_repo.runtime.request import Request, SamplingParams
from tests.runtime.drive import Client, Clock, fake_engine, greedy, request
from tests.runtime.fake_executor import fake_spec, greedy_completion

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


def test_warm_up_leaves_nothing_behind() -> None:
    engine = fake_engine()
    engine.warm_up()
    assert engine.stats()["kv_blocks_used"] == 0
    assert engine.generate([Request("r", PROMPT, SamplingParams(max_tokens=1))])[0].finish_reason == "length"
