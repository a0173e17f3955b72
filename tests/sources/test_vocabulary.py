"""A tokenizer that has tokens which the model does not know is refused, whatever kind it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models

from model_repo.runtime.errors import BadInput
from tests.sources.checkpoints import opened

KINDS: dict[str, Any] = {
    "WordLevel": lambda size: models.WordLevel({f"w{place}": place for place in range(size)}, unk_token="w0"),
    "WordPiece": lambda size: models.WordPiece({f"w{place}": place for place in range(size)}, unk_token="w0"),
    "BPE": lambda size: models.BPE({f"w{place}": place for place in range(size)}, []),
    "Unigram": lambda size: models.Unigram([(f"w{place}", -1.0) for place in range(size)], 0, False),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_may_use_the_whole_vocabulary_and_no_more(folder: Path, kind: str) -> None:
    Tokenizer(KINDS[kind](40)).save(str(folder / "tokenizer.json"))
    assert opened(folder).vocab_size == 40
    Tokenizer(KINDS[kind](41)).save(str(folder / "tokenizer.json"))
    with pytest.raises(
        BadInput, match=r"gives ids up to 40 \(the token 'w40'\), but the model's vocabulary has 40 \(ids 0"
    ):
        opened(folder)


def test_added_tokens_count(folder: Path) -> None:
    tokenizer = Tokenizer(KINDS["BPE"](39))
    tokenizer.add_special_tokens([AddedToken("<pad>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    opened(folder)
    tokenizer.add_special_tokens([AddedToken("<extra>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(BadInput, match=r"ids up to 40 \(the token '<extra>'\)"):
        opened(folder)


def test_a_tokenizer_that_is_no_json_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(json.dumps({"model": 1})[:-2], encoding="utf-8")
    with pytest.raises(BadInput, match=r"tokenizer\.json is not readable JSON"):
        opened(folder)
