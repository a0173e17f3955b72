"""Completions through the ensemble: the same as the engine's own, streamed, whole, and many in flight."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from model_repo.runtime.engine import Engine
from model_repo.runtime.output import Completion
from model_repo.runtime.request import Request, SamplingParams
from pipeline.client import Chunk, complete, stream
from pipeline.serve import Server
from tests.e2e.conftest import metric, post, until

PROMPTS = (
    "The old man",
    "It was a dark evening, and nobody in the house had yet lit a candle; so",
    "She",
    "The captain of the ship",
    "My dear friend, I write to you from the country, where the weather is fine and",
    "In the garden",
    "The soldiers marched all day and all night until they came to the river. There",
    '"I cannot believe it," said',
)
GREEDY = {"temperature": 0.0, "ignore_eos": True}


@pytest.fixture(scope="module")
def engine(builds: dict[str, Path]) -> Engine:
    """The same engine without a server."""
    return Engine.load(builds["demo"], threads=1)


def offline(engine: Engine, prompt: str, **sampling: Any) -> Completion:
    assert engine.tokenizer is not None
    ids = tuple(engine.tokenizer.encode(prompt))
    (completion,) = engine.generate([Request("r", ids, SamplingParams(**sampling))])
    return completion


def text(chunks: Sequence[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def test_stream_equals_the_engine(idle: Server, engine: Engine) -> None:
    chunks = list(stream(idle.grpc, "demo", text_input=PROMPTS[0], max_tokens=48, **GREEDY))
    expected = offline(engine, PROMPTS[0], max_tokens=48, **GREEDY)
    assert text(chunks) == expected.text
    assert len(chunks) > 2  # in pieces; how many is a matter of speed
    assert sum(chunk.num_output_tokens for chunk in chunks) == 48
    assert {chunk.num_input_tokens for chunk in chunks} == {len(expected.prompt_ids)}
    assert [chunk.finish_reason for chunk in chunks] == [""] * (len(chunks) - 1) + ["length"]


def test_eight_streams_in_flight_give_what_each_gives_alone(idle: Server, engine: Engine) -> None:
    length = 600  # long enough that a client that begins late still meets the others
    expected = [offline(engine, prompt, max_tokens=length, **GREEDY).text for prompt in PROMPTS]
    most = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, int(metric(idle, "slipway_running", model="demo")))

    watcher = threading.Thread(target=watch)
    watcher.start()
    before = metric(idle, "slipway_steps_total", model="demo")
    try:
        with ThreadPoolExecutor(len(PROMPTS)) as pool:
            told = list(
                pool.map(
                    lambda prompt: text(
                        list(stream(idle.grpc, "demo", text_input=prompt, max_tokens=length, **GREEDY))
                    ),
                    PROMPTS,
                )
            )
    finally:
        done.set()
        watcher.join()
    assert told == expected
    assert most > 1
    # Eight one after the other would take 8 x 600 steps; in flight together they share them.
    until(lambda: metric(idle, "slipway_running", model="demo") == 0, "all ended")
    assert metric(idle, "slipway_steps_total", model="demo") - before < len(PROMPTS) * length * 0.75


def test_sampling_is_the_engines(idle: Server, engine: Engine) -> None:
    sampling = {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "repetition_penalty": 1.2, "seed": 11}
    expected = offline(engine, PROMPTS[3], max_tokens=40, **sampling).text
    assert text(list(stream(idle.grpc, "demo", text_input=PROMPTS[3], max_tokens=40, **sampling))) == expected
    as_json = json.dumps({"max_tokens": "40", **{name: str(value) for name, value in sampling.items()}})
    assert (
        text(list(stream(idle.grpc, "demo", text_input=PROMPTS[3], sampling_parameters=as_json))) == expected
    )
    other = text(
        list(stream(idle.grpc, "demo", text_input=PROMPTS[3], max_tokens=40, **sampling | {"seed": 12}))
    )
    assert other != expected


def test_stop_words_end_before_themselves(idle: Server, engine: Engine) -> None:
    whole = offline(engine, PROMPTS[0], max_tokens=48, **GREEDY).text
    word = whole.split()[5]
    chunks = list(
        stream(idle.grpc, "demo", text_input=PROMPTS[0], max_tokens=48, stop_words=[word, "zzz"], **GREEDY)
    )
    assert text(chunks) == whole[: whole.index(word)]
    assert chunks[-1].finish_reason == "stop"


def test_whole_text_in_one_response(idle: Server, engine: Engine) -> None:
    expected = offline(engine, PROMPTS[2], max_tokens=24, **GREEDY).text
    body = {"text_input": PROMPTS[2], "max_tokens": 24, **GREEDY}
    status, answer = post(idle, "demo/generate", {**body, "exclude_input_in_output": True})
    assert (status, json.loads(answer)["text_output"]) == (200, expected)
    assert json.loads(answer)["num_output_tokens"] == 24
    assert json.loads(answer)["finish_reason"] == "length"
    status, answer = post(idle, "demo/generate", body)
    assert (status, json.loads(answer)["text_output"]) == (200, PROMPTS[2] + expected)
    status, answer = post(
        idle, "demo/generate", {"text_input": PROMPTS[2], "parameters": {"max_tokens": 24, **GREEDY}}
    )
    assert (status, json.loads(answer)["text_output"]) == (200, PROMPTS[2] + expected)


def test_unary_infer_and_generate(idle: Server, engine: Engine) -> None:
    expected = offline(engine, PROMPTS[1], max_tokens=24, **GREEDY).text
    whole = complete(
        idle.grpc, "demo_unary", text_input=PROMPTS[1], max_tokens=24, exclude_input_in_output=True, **GREEDY
    )
    assert (whole.text, whole.finish_reason, whole.num_output_tokens) == (expected, "length", 24)
    status, answer = post(idle, "demo_unary/generate", {"text_input": PROMPTS[1], "max_tokens": 24, **GREEDY})
    assert (status, json.loads(answer)["text_output"]) == (200, PROMPTS[1] + expected)


def test_unary_requests_do_not_wait_for_one_another(idle: Server) -> None:
    """A short one that is sent after a long one is answered while the long one runs."""
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(complete, idle.grpc, "demo_unary", text_input="She", max_tokens=600, **GREEDY)
        until(lambda: metric(idle, "slipway_running", model="demo") == 1, "the long one runs")
        short = complete(idle.grpc, "demo_unary", text_input="He", max_tokens=2, **GREEDY)
        assert not long.done()
        assert short.num_output_tokens == 2
        assert long.result(timeout=60).num_output_tokens == 600


def test_generate_stream_over_http(idle: Server, engine: Engine) -> None:
    status, answer = post(
        idle, "demo/generate_stream", {"text_input": PROMPTS[4], "max_tokens": 20, "stream": True, **GREEDY}
    )
    events = [json.loads(line.removeprefix("data: ")) for line in answer.splitlines() if line]
    assert status == 200
    expected = offline(engine, PROMPTS[4], max_tokens=20, **GREEDY).text
    assert "".join(event["text_output"] for event in events) == expected


def test_echo_comes_once(idle: Server) -> None:
    chunks = list(
        stream(
            idle.grpc, "demo", text_input="The sea", max_tokens=12, exclude_input_in_output=False, **GREEDY
        )
    )
    assert len(chunks) > 1
    assert text(chunks).startswith("The sea")
    assert text(chunks).count("The sea") == 1


def test_log_probabilities(idle: Server, engine: Engine) -> None:
    body = {"text_input": PROMPTS[0], "max_tokens": 6, "top_logprobs": 2, **GREEDY}
    answer = json.loads(post(idle, "demo/generate", body)[1])
    told = json.loads(answer["logprobs"])
    expected = offline(engine, PROMPTS[0], max_tokens=6, logprobs=2, **GREEDY)
    assert len(told) == 6
    for entry, token_id, reference in zip(told, expected.token_ids, expected.logprobs, strict=True):
        assert entry[str(token_id)]["rank"] == 1  # greedy
        assert entry[str(token_id)]["logprob"] == pytest.approx(reference.logprob, abs=1e-4)
        assert len(entry) == 2
    assert answer["cumulative_logprob"] == pytest.approx(
        sum(row.logprob for row in expected.logprobs), abs=1e-3
    )
    plain = json.loads(post(idle, "demo/generate", body | {"top_logprobs": 0})[1])
    assert [len(entry) for entry in json.loads(plain["logprobs"])] == [1] * 6
    body.pop("top_logprobs")
    assert json.loads(post(idle, "demo/generate", body)[1])["logprobs"] == "null"


def test_chat(idle: Server) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who is there?"}]
    rendered = "system: Be brief.\nuser: Who is there?\nassistant:"
    chat = list(stream(idle.grpc, "demo", messages=json.dumps(messages), max_tokens=16, **GREEDY))
    plain = list(stream(idle.grpc, "demo", text_input=rendered, max_tokens=16, **GREEDY))
    assert text(chat) == text(plain)
    assert chat[0].num_input_tokens == plain[0].num_input_tokens
