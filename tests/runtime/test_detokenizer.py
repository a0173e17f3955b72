"""Text as it comes: whole characters only, stop strings cut exactly, nothing lost."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_repo.runtime.detokenizer import REPLACEMENT, Detokenizer
from tests.runtime.tiny_tokenizer import END, tiny_tokenizer

TEXTS = [
    "plain words",
    "🙂🚢 and 👩‍👩‍👧 families",
    "über straße 日本語",
    "e\u0301 combining",
    "\n\t  spaces  ",
]


def feed(detokenizer: Detokenizer, token_ids: Sequence[int]) -> tuple[list[str], bool]:
    """Pieces of all pushes and of the flush, and whether a stop string ended them."""
    pieces = []
    for token in token_ids:
        text, stopped = detokenizer.push(token)
        pieces.append(text)
        if stopped:
            return pieces, True
    text, stopped = detokenizer.flush()
    return [*pieces, text], stopped


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_of_known_texts_join_to_the_whole(text: str) -> None:
    tokenizer = tiny_tokenizer()
    token_ids = tokenizer.encode(text)
    assert len(token_ids) > 1
    pieces, _ = feed(Detokenizer(tokenizer), token_ids)
    assert "".join(pieces) == text
    assert all(REPLACEMENT not in piece for piece in pieces)


def test_an_emoji_split_over_tokens_comes_whole_with_its_last_byte() -> None:
    tokenizer = tiny_tokenizer()
    token_ids = tokenizer.encode("🦕")
    assert len(token_ids) > 2, "the test needs a character that is cut apart"
    detokenizer = Detokenizer(tokenizer)
    *before, last = [detokenizer.push(token).text for token in token_ids]
    assert set(before) == {""}
    assert last == "🦕"


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.text(max_size=20), st.text(max_size=20))
def test_random_text_comes_back_after_any_prompt(prompt: str, text: str) -> None:
    tokenizer = tiny_tokenizer()
    text = text.replace(REPLACEMENT, "")
    detokenizer = Detokenizer(tokenizer, context=tokenizer.encode(prompt)[-4:])
    pieces, _ = feed(detokenizer, tokenizer.encode(text))
    assert "".join(pieces) == text
    assert all(REPLACEMENT not in piece for piece in pieces)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 299), max_size=40))
def test_random_tokens_give_the_decoders_text_of_all(token_ids: list[int]) -> None:
    """Broken characters become U+FFFD, once it is certain that they stay broken; unfinished ones have no text."""
    tokenizer = tiny_tokenizer()
    pieces, _ = feed(Detokenizer(tokenizer), token_ids)
    whole = tokenizer.decode(token_ids)
    shown = "".join(pieces)
    assert whole.startswith(shown)
    assert len(whole) - len(shown) <= 3
    assert whole[len(shown) :].strip(REPLACEMENT) == ""


def test_bytes_that_never_become_a_character_do_not_hold_text_back_for_ever() -> None:
    tokenizer = tiny_tokenizer()
    lone = tokenizer.encode("🦕")[1]  # a continuation byte
    detokenizer = Detokenizer(tokenizer)
    shown = "".join(detokenizer.push(lone).text for _ in range(40))
    assert len(shown) >= 30
    assert detokenizer.push(tokenizer.encode("x")[0]).text.endswith("x")


def test_half_a_character_at_the_end_is_not_shown() -> None:
    tokenizer = tiny_tokenizer()
    pieces, _ = feed(Detokenizer(tokenizer), tokenizer.encode("a🦕")[:-1])
    assert "".join(pieces) == "a"


def test_special_tokens_have_no_text() -> None:
    tokenizer = tiny_tokenizer()
    token_ids = [*tokenizer.encode("one"), *tokenizer.encode(END), *tokenizer.encode(" two")]
    pieces, _ = feed(Detokenizer(tokenizer), token_ids)
    assert "".join(pieces) == "one two"


class Letters:
    """Token ids are code points."""

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(map(chr, token_ids))


def by_letters(text: str, *stop: str) -> tuple[list[str], bool]:
    return feed(Detokenizer(Letters(), stop), [ord(letter) for letter in text])


def test_a_stop_string_over_several_tokens_is_cut_exactly() -> None:
    pieces, stopped = by_letters("one END two", "END")
    assert stopped
    assert pieces == ["o", "n", "e", " ", "", "", ""]


def test_the_beginning_of_a_stop_string_is_released_when_it_goes_on_otherwise() -> None:
    pieces, stopped = by_letters("an ENvelope", "END")
    assert not stopped
    assert pieces == ["a", "n", " ", "", "", "ENv", "e", "l", "o", "p", "e", ""]


def test_held_back_text_is_released_at_the_end() -> None:
    pieces, stopped = by_letters("the EN", "END")
    assert not stopped
    assert pieces[-1] == "EN"
    assert "".join(pieces) == "the EN"


def test_a_stop_string_that_begins_within_a_false_start_is_found() -> None:
    assert by_letters("aab rest", "ab") == (["", "a", ""], True)
    pieces, stopped = by_letters("ENENDx", "END")
    assert stopped
    assert "".join(pieces) == "EN"


def test_a_stop_string_within_one_token_is_cut() -> None:
    tokenizer = tiny_tokenizer()
    token_ids = tokenizer.encode("a ship slides")
    assert any("hi" in tokenizer.decode([token]) for token in token_ids)
    pieces, stopped = feed(Detokenizer(tokenizer, ("hi",)), token_ids)
    assert stopped
    assert "".join(pieces) == "a s"


def test_the_first_of_several_stop_strings_counts() -> None:
    pieces, stopped = by_letters("one two three", "three", "two", "o three")
    assert stopped
    assert "".join(pieces) == "one "


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.text(alphabet="ab🛳", max_size=24),
    st.lists(st.text(alphabet="ab🛳", min_size=1, max_size=4), max_size=3),
)
def test_random_stop_strings_cut_where_they_first_end(text: str, stop: list[str]) -> None:
    """With one character a token, text ends before whichever stop string is complete first."""
    pieces, stopped = by_letters(text, *stop)
    complete = [(end, begin) for s in stop for end in range(len(text) + 1) if (begin := end - len(s)) >= 0
                and text[begin:end] == s]  # fmt: skip
    assert stopped == bool(complete)
    if complete:
        first = min(complete)[0]
        assert "".join(pieces) == text[: min(begin for end, begin in complete if end == first)]
    else:
        assert "".join(pieces) == text
