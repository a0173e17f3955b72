"""What an engine does not take, and when it takes more again."""

from __future__ import annotations

from typing import Any

import pytest

from model_repo.runtime.errors import BadInput, Busy
from tests.runtime.drive import Client, fake_engine, greedy, request
from tests.runtime.fake_executor import fake_spec, greedy_completion

PROMPT = (1, 2, 3)
NEXT = greedy_completion(PROMPT, 12)


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
