"""The experiment that finds what mixes texts, on modules small enough to know why. (Families: test_encoders.py.)"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pipeline.export.attention import UnsupportedModel
from pipeline.export.independence import LENGTHS, alone, check_independence, position_limit, texts_for

VOCABULARY = 50
SPECIAL = (0, 1, 7)


class Tiny(nn.Module):
    """Word and position embeddings through `mixing`, then the mean over the text."""

    def __init__(
        self, mixing: Callable[[Tensor, Tensor], Tensor] | None = None, first_position: int = 0
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(VOCABULARY, 8)
        self.places = nn.Embedding(2000, 8)
        self.mixer = Mixer(mixing or (lambda hidden, mask: hidden))
        self.first_position = first_position

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1]) + self.first_position
        hidden = self.mixer(self.words(ids) + self.places(places)[None], mask)
        weights = mask.unsqueeze(-1).float()
        return (hidden * weights).sum(1) / weights.sum(1)


class Mixer(nn.Module):
    """A module with a name, so that it can be named."""

    def __init__(self, mixing: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.mixing = mixing

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return self.mixing(hidden, mask)


def check(module: Tiny, before: Tiny | None = None) -> None:
    texts = texts_for(VOCABULARY, SPECIAL, 200)
    check_independence(module, module, texts, alone(before or module, texts), 200)


def test_texts_hold_no_special_tokens_and_fit() -> None:
    texts = texts_for(VOCABULARY, SPECIAL, 100)
    assert [len(text) for text in texts] == [min(length, 100) for length in LENGTHS]
    seen = {int(token) for text in texts for token in text}
    assert seen.isdisjoint(SPECIAL)
    assert max(seen) < VOCABULARY


def test_a_model_that_keeps_texts_apart_passes() -> None:
    check(Tiny())
    check(Tiny(lambda hidden, mask: hidden + (hidden * mask[..., None]).sum(1, keepdim=True)))


def test_padding_that_is_seen_is_found_and_named() -> None:
    with pytest.raises(UnsupportedModel, match=r"depends on the padding behind it, first in Mixer \(mixer\)"):
        check(Tiny(lambda hidden, mask: hidden + hidden.sum(1, keepdim=True)))


def test_the_next_token_that_may_be_padding_is_found() -> None:
    with pytest.raises(UnsupportedModel, match="depends on the padding behind it"):
        check(Tiny(lambda hidden, mask: hidden + 0.01 * hidden.roll(-1, dims=1) * (hidden.shape[1] > 3)))


def test_one_token_of_padding_is_tried_and_told_from_company() -> None:
    def one(hidden: Tensor, mask: Tensor) -> Tensor:
        return hidden + ((1 - mask).sum(1) == 1)[:, None, None].float()

    with pytest.raises(UnsupportedModel, match="depends on the padding behind it"):
        check(Tiny(one))


def test_company_that_is_seen_is_found_and_named() -> None:
    """Normalized over the batch: alone, padded or not, nothing is to be seen."""
    with pytest.raises(
        UnsupportedModel, match=r"depends on the other texts of its batch, first in Mixer \(mixer\)"
    ):
        check(Tiny(lambda hidden, mask: hidden + 0.01 * (hidden[:, :1].mean(0) - hidden[:, :1])))


def test_numbers_that_are_none_are_found() -> None:
    def unmasked_softmax(hidden: Tensor, mask: Tensor) -> Tensor:
        return hidden + torch.where(mask.all(), 0.0, torch.nan)

    with pytest.raises(UnsupportedModel, match="depends on the padding behind it"):
        check(Tiny(unmasked_softmax))


def test_other_numbers_than_before_are_found() -> None:
    """As attention that a preparation changes would give."""
    with pytest.raises(
        UnsupportedModel, match="gives other numbers with its attention in standard operators"
    ):
        check(Tiny(lambda hidden, mask: hidden * 1.001), before=Tiny())


def test_only_long_texts_show_some_differences() -> None:
    def sparse(hidden: Tensor, mask: Tensor) -> Tensor:
        return hidden if hidden.shape[1] < 150 else hidden * 1.01

    with pytest.raises(UnsupportedModel, match="gives other numbers"):
        check(Tiny(sparse), before=Tiny())


def test_a_model_that_fails_is_told_with_its_own_words() -> None:
    def fails(hidden: Tensor, mask: Tensor) -> Tensor:
        raise IndexError("blocks of two tokens are needed")

    with pytest.raises(UnsupportedModel, match=r"cannot compute a batch of 1 texts .*blocks of two tokens"):
        check(Tiny(fails))


@pytest.mark.parametrize("first", [0, 2])
def test_position_tables_are_known_by_their_indices(first: int) -> None:
    module = Tiny(first_position=first)
    assert position_limit(module, module, texts_for(VOCABULARY, SPECIAL, 200)) == 2000 - first


def test_models_without_a_position_table_have_no_limit() -> None:
    words = nn.Embedding(VOCABULARY, 8)
    assert position_limit(words, lambda ids, mask: words(ids).mean(1), texts_for(VOCABULARY, (), 200)) is None
