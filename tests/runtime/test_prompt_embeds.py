"""Prompts with images in the engine loop: every row reaches its own token, whatever the company, chunks and blocks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_repo.runtime.contract import EmbedStepTensors, EngineSpec, StepTensors
from model_repo.runtime.engine import Engine
from model_repo.runtime.errors import BadInput
from model_repo.runtime.image_steps import Preprocessing, Resize
from model_repo.runtime.prompt_embeds import ImageEncoderSpec, PromptEmbeds
from model_repo.runtime.request import Request
from tests.runtime.drive import Client, greedy
from tests.runtime.fake_executor import VOCAB_SIZE, FakeExecutor, fake_spec, greedy_completion
from tests.runtime.invariants import check_engine

PLACEHOLDER = 5
IMAGES = ImageEncoderSpec(
    "engine.encoder.onnx", Preprocessing(resize=Resize("bilinear", 4, 4)), "<image>", PLACEHOLDER, 3, 2
)


class FakeImagesExecutor(FakeExecutor):
    """The fake model, for which a row's first element is the token that it counts as."""

    def run(self, step: StepTensors) -> npt.NDArray[np.float32]:
        assert isinstance(step, EmbedStepTensors)
        assert step.embed_index.dtype == np.int32
        assert step.prompt_embeds.dtype == np.float32
        assert step.prompt_embeds.shape[1:] == (IMAGES.hidden_size,)
        assert len(step.prompt_embeds) in (1, len(step.input_ids)), "two shapes only"
        taken = step.embed_index >= 0
        assert (step.input_ids[taken] == PLACEHOLDER).all(), "a row for a token that is no placeholder"
        assert not taken[int(step.cu_seqlens[-1]) :].any(), "a row for a padding token"
        rows = step.prompt_embeds[np.maximum(step.embed_index, 0), 0].astype(np.int32)
        plain = {name: value for name, value in vars(step).items() if "embed" not in name}
        return super().run(StepTensors(**{**plain, "input_ids": np.where(taken, rows, step.input_ids)}))


def spec_with_images(**limits: int) -> EngineSpec:
    return replace(fake_spec(**limits), image_encoder=IMAGES)


def engine_of(spec: EngineSpec) -> Engine:
    return Engine(FakeImagesExecutor(spec), spec)


def rows_like(tokens: list[int]) -> npt.NDArray[np.float32]:
    """Rows that count as these tokens."""
    return np.array([[token, 0.5] for token in tokens], np.float32).reshape(-1, IMAGES.hidden_size)


def request(number: int, prompt: list[int], rows: list[int], tokens: int = 8) -> Request:
    return Request(
        str(number), tuple(prompt), greedy(tokens), prompt_embeds=rows_like(rows) if rows else None
    )


def expected(prompt: list[int], rows: list[int], count: int) -> list[int]:
    """The fake model's own continuation of what the prompt counts as."""
    left = iter(rows)
    return greedy_completion([next(left) if token == PLACEHOLDER else token for token in prompt], count)


PLAIN = st.integers(0, VOCAB_SIZE - 1).filter(lambda token: token != PLACEHOLDER)
PROMPTS = st.lists(st.one_of(PLAIN, st.just(PLACEHOLDER)), min_size=1, max_size=14)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 6)), min_size=1, max_size=7),
    st.lists(PROMPTS, min_size=3, max_size=3),
    st.lists(st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=14, max_size=14), min_size=3, max_size=3),
)
def test_rows_reach_their_tokens_in_any_company(
    asked: list[tuple[int, int, int]], prompts: list[list[int]], images: list[list[int]]
) -> None:
    """Few prompts and few images in all combinations, so that blocks of equal tokens and other rows meet."""
    engine = engine_of(spec_with_images(num_blocks=9, max_length=24, block_size=3, token_budget=7))
    client = Client(engine)
    given_rows = [images[image][: prompts[prompt].count(PLACEHOLDER)] for prompt, image, _ in asked]
    for step in range(600):
        for number, (prompt, _, start) in enumerate(asked):
            if step == start:
                client.submit(request(number, prompts[prompt], given_rows[number]))
        busy = engine.step()
        check_engine(engine)
        if not busy and step > 7:
            break
    for number, (prompt, _, _) in enumerate(asked):
        assert client.reason(str(number)) == "length"
        assert client.tokens(str(number)) == expected(prompts[prompt], given_rows[number], 8)


def test_the_same_image_shares_blocks_and_another_does_not() -> None:
    engine = engine_of(spec_with_images(block_size=4, token_budget=16))
    prompt = [1, PLACEHOLDER, PLACEHOLDER, PLACEHOLDER, 2, 3, 4, 6, 7, 8]
    computed = []
    for number, rows in enumerate(([9, 9, 9], [9, 9, 10], [9, 9, 9])):
        before = engine._executor.num_tokens  # type: ignore[attr-defined]
        (completion,) = engine.generate([request(number, prompt, rows, tokens=1)])
        assert list(completion.token_ids) == expected(prompt, rows, 1)
        computed.append(engine._executor.num_tokens - before)  # type: ignore[attr-defined]
    assert computed == [10, 10, 2], "the third takes two blocks of the first"


def test_content_is_a_hash_of_the_row_where_a_row_takes_a_place() -> None:
    prompt = [1, PLACEHOLDER, 2, PLACEHOLDER]
    one = PromptEmbeds.of(prompt, rows_like([9, 10]), PLACEHOLDER)
    assert one.row_of.tolist() == [-1, 0, -1, 1]
    content = one.content(prompt)
    assert content[::2] == [1, 2]
    assert max(content[1::2]) < 0
    assert content[1] != content[3]
    other = PromptEmbeds.of([PLACEHOLDER], rows_like([10]), PLACEHOLDER)
    assert other.content([PLACEHOLDER]) == [content[3]]


def test_a_generated_placeholder_is_a_token_like_others() -> None:
    """Only the prompt's placeholders stand for rows."""
    spec = spec_with_images()
    for start in range(200):
        prompt = [start % VOCAB_SIZE, start // VOCAB_SIZE + 6, PLACEHOLDER]
        rows = [start % 7]
        wanted = expected(prompt, rows, 12)
        if PLACEHOLDER in wanted[:-1] and PLACEHOLDER not in prompt[:2]:
            (completion,) = engine_of(spec).generate([request(0, prompt, rows, tokens=12)])
            assert list(completion.token_ids) == wanted
            return
    raise AssertionError("no prompt whose completion holds the placeholder")


def test_placeholders_become_as_many_as_an_image_has_rows() -> None:
    assert IMAGES.expanded([1, PLACEHOLDER, 2], 1, 10) == [1, *[PLACEHOLDER] * 3, 2]
    assert IMAGES.expanded([1, 2], 0, 10) == [1, 2]
    with pytest.raises(BadInput, match="has 2 places for images, and 1 images are given; write <image> once"):
        IMAGES.expanded([PLACEHOLDER] * 2, 1, 10)
    with pytest.raises(BadInput, match="has 6 tokens with its 2 images, each of which takes 3; this engine"):
        IMAGES.expanded([PLACEHOLDER] * 2, 2, 6)


def test_a_plain_engine_takes_no_rows() -> None:
    spec = fake_spec()
    with pytest.raises(BadInput, match="engine 'fake' takes no images"):
        Engine(FakeExecutor(spec), spec).generate([request(0, [PLACEHOLDER], [3])])


def test_the_warm_up_needs_no_image() -> None:
    engine = engine_of(spec_with_images())
    engine.warm_up()
    assert engine.stats()["requests_length"] == 1


def test_the_spec_comes_back_from_json() -> None:
    spec = spec_with_images()
    assert EngineSpec.from_dict(spec.to_dict()) == spec
