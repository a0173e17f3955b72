"""Requests with an encoder in the engine loop: blocks of both groups, one run of the encoder each, bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_repo.runtime.contract import EngineSpec, Limits
from model_repo.runtime.engine import Engine
from model_repo.runtime.errors import BadInput
from model_repo.runtime.request import Request
from tests.runtime.drive import Client, greedy
from tests.runtime.fake_encoder import MAX_POSITIONS, FakeCrossExecutor, cross_spec, expected_tokens
from tests.runtime.fake_executor import VOCAB_SIZE
from tests.runtime.invariants import check_engine

SOURCES = [[7], [3, 1, 4, 1, 5, 9, 2, 6], list(range(19)), [5, 5, 5], [8, 9, 7, 9, 3]]


def request(number: int, source: list[int], prompt: tuple[int, ...] = (1, 2), tokens: int = 8) -> Request:
    return Request(str(number), prompt, greedy(tokens), encoder_input=np.array([source]))


def engine_of(spec: EngineSpec, **options: Any) -> tuple[Engine, FakeCrossExecutor]:
    executor = FakeCrossExecutor(spec, **options)
    return Engine(executor, spec), executor


def test_requests_in_flight_see_their_own_encoder_output() -> None:
    """The same prompt for all: were its cache shared as that of a plain decoder, tokens would be wrong."""
    engine, executor = engine_of(cross_spec(block_size=2))
    prompt = (1, 2, 3, 4, 5)
    requests = [request(number, source, prompt) for number, source in enumerate([*SOURCES, *SOURCES])]
    completions = engine.generate(requests)
    assert [list(completion.token_ids) for completion in completions] == [
        expected_tokens(source, prompt, 8) for source in (*SOURCES, *SOURCES)
    ]
    assert executor.encoded == [*SOURCES, *SOURCES]
    check_engine(engine)
    assert engine._scheduler.cross_blocks.num_used == 0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=MAX_POSITIONS),
            st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=9),
            st.integers(0, 6),  # the step that it comes in
            st.booleans(),  # cancelled in its third step
        ),
        min_size=1,
        max_size=7,
    )
)
def test_whatever_company_and_however_few_blocks(
    asked: list[tuple[list[int], list[int], int, bool]],
) -> None:
    spec = cross_spec(num_cross_blocks=9, num_blocks=9, max_length=24, block_size=3, token_budget=7)
    engine, executor = engine_of(spec)
    client = Client(engine)
    for step in range(400):
        for number, (source, prompt, start, cancels) in enumerate(asked):
            if step == start:
                client.submit(request(number, source, tuple(prompt), tokens=12))
            if cancels and step == start + 3:
                engine.cancel(str(number))
        busy = engine.step()
        check_engine(engine)
        if not busy and step > 10:
            break
    for number, (source, prompt, _, cancels) in enumerate(asked):
        reason = client.reason(str(number))
        assert reason == "length" or (cancels and reason == "cancelled")
        tokens = client.tokens(str(number))
        assert tokens == expected_tokens(source, prompt, 12)[: len(tokens)]
        assert len(tokens) == 12 or reason == "cancelled"
    assert len(executor.encoded) <= len(asked), "an encoder ran twice"
    assert engine._blocks.num_used == engine._scheduler.cross_blocks.num_used == 0


def test_a_preempted_request_keeps_its_encoder_output() -> None:
    spec = cross_spec(num_blocks=6, max_length=24, block_size=4, token_budget=16)
    engine, executor = engine_of(spec)
    completions = engine.generate([request(number, SOURCES[number], tokens=18) for number in range(3)])
    assert engine.stats()["preemptions"] > 0
    assert executor.encoded == SOURCES[:3]
    for completion, source in zip(completions, SOURCES, strict=False):
        assert list(completion.token_ids) == expected_tokens(source, (1, 2), 18)


def test_one_encoder_runs_a_step_so_that_others_go_on() -> None:
    engine, executor = engine_of(cross_spec())
    client = Client(engine)
    for number, source in enumerate(SOURCES[:3]):
        client.submit(request(number, source))
    for step in range(1, 4):
        engine.step()
        assert len(executor.encoded) == step
        assert len(client.tokens("0")) == step


def test_an_encoder_that_fails_ends_its_own_request() -> None:
    def before_encode(source: npt.NDArray[Any]) -> None:
        if source.shape[1] == 3:
            raise RuntimeError("no such sound")

    engine, _ = engine_of(cross_spec(), before_encode=before_encode)
    completions = engine.generate([request(number, source) for number, source in enumerate(SOURCES)])
    for completion, source in zip(completions, SOURCES, strict=True):
        if len(source) == 3:
            assert completion.finish_reason == "error"
            assert completion.error == "the encoder failed on this request's input: no such sound"
        else:
            assert list(completion.token_ids) == expected_tokens(source, (1, 2), 8)
    check_engine(engine)
    assert engine._scheduler.cross_blocks.num_used == 0


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (None, "needs the encoder's input 'input_ids'"),
        (np.zeros((1, 3), np.int32), "has the type int32; it must be int64"),
        (np.zeros(3, np.int64), r"has the shape \[3\]; it must be \[1, positions\]"),
        (np.zeros((2, 3), np.int64), r"has the shape \[2, 3\]"),
        (np.zeros((1, 0), np.int64), "has 0 positions; it must have 1 to 19"),
        (np.zeros((1, 20), np.int64), "has 20 positions"),
        (np.full((1, 2), VOCAB_SIZE), "a token that is not in the vocabulary; ids are 0 to 63"),
    ],
)
def test_an_input_that_the_encoder_does_not_take_is_refused(array: Any, message: str) -> None:
    engine, _ = engine_of(cross_spec())
    with pytest.raises(BadInput, match=message):
        engine.generate([Request("a", (1,), greedy(), encoder_input=array)])


def test_a_plain_decoder_takes_no_encoder_input() -> None:
    from tests.runtime.drive import fake_engine

    with pytest.raises(BadInput, match="has no encoder"):
        fake_engine().generate([request(0, [1])])


def test_warming_up_needs_no_input() -> None:
    engine, executor = engine_of(cross_spec())
    engine.warm_up()
    assert executor.encoded == [[0]]


def test_the_longest_input_must_fit() -> None:
    with pytest.raises(BadInput, match="4 blocks of 4 cannot hold the 19 positions"):
        cross_spec(num_cross_blocks=4)
    assert Limits(1, 4, 8, 4, 2).num_cross_blocks == 0


def test_the_spec_is_read_back() -> None:
    spec = cross_spec()
    assert EngineSpec.from_dict(spec.to_dict()) == spec
