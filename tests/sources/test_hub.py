"""Hub ids: against a hub on this machine, with a cache of its own. Nothing leaves the machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from model_repo.runtime.errors import BadInput
from pipeline.recipe import SourceRecipe
from pipeline.sources import Source, open_source
from tests.pipeline.fake_steps import write_checkpoint
from tests.sources.hub_server import Hub, serving

REPOSITORY = "acme/tiny-llama"
EXTRA = ("README.md", "consolidated.safetensors", "onnx/model.onnx", "pytorch_model.bin", "modeling_x.py")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    return folder


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with one checkpoint, and beside it what nobody needs."""
    with serving() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", running.url + template)
        yield running


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = write_checkpoint(tmp_path / "published")
    for name in EXTRA:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x" * 1000)
    return folder


def open_(model: str, **recipe: Any) -> Source:
    return open_source(model, SourceRecipe(model, **recipe))


def test_what_is_needed_is_downloaded_and_nothing_else(hub: Hub, checkpoint: Path, cache: Path) -> None:
    commit = hub.add(REPOSITORY, checkpoint)
    source = open_(REPOSITORY)
    assert (source.name, source.kind, source.vocab_size) == ("tiny-llama", "decoder", 16)
    assert source.reference == f"{REPOSITORY}@{commit}"
    assert hub.downloaded == {"config.json", "model.safetensors", "tokenizer.json"}
    assert source.folder.is_relative_to(cache)
    for path in source.files:
        assert path.read_bytes() == (checkpoint / path.name).read_bytes()


def test_the_same_revision_is_opened_again_without_the_hub(hub: Hub, checkpoint: Path) -> None:
    hub.add(REPOSITORY, checkpoint)
    reference = open_(REPOSITORY).reference
    hub.asked.clear()
    assert open_(reference).reference == reference
    assert hub.asked == [], "a commit does not change"


def test_a_branch_is_looked_up_and_may_move(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    hub.add(REPOSITORY, checkpoint, "v1")
    other = write_checkpoint(tmp_path / "other")
    config = (other / "config.json").read_text().replace('"vocab_size": 16', '"vocab_size": 17')
    (other / "config.json").write_text(config)
    hub.add(REPOSITORY, other)
    assert open_(REPOSITORY).vocab_size == 17
    assert open_(f"{REPOSITORY}@v1").vocab_size == 16
    hub.add(REPOSITORY, checkpoint)
    assert open_(REPOSITORY).vocab_size == 16


def test_a_cached_snapshot_works_when_the_hub_is_gone(
    hub: Hub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(REPOSITORY, checkpoint)
    online = open_(REPOSITORY)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.asked.clear()
    assert open_(REPOSITORY) == online
    assert hub.asked == []


def test_remote_code_and_pickles_are_fetched_with_leave_only(hub: Hub, checkpoint: Path) -> None:
    hub.add(REPOSITORY, checkpoint)
    open_(REPOSITORY, trust_remote_code=True, allow_pickle=True)
    assert "modeling_x.py" in hub.downloaded
    assert "pytorch_model.bin" not in hub.downloaded, "there are safetensors"
    (checkpoint / "model.safetensors").unlink()
    hub.add("acme/pickled", checkpoint)
    open_("acme/pickled", allow_pickle=True)
    assert "pytorch_model.bin" in hub.downloaded


def test_without_a_network_the_message_says_so(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        BadInput, match=r"the hub cannot be reached, and the cache does not hold all of acme/other@v2"
    ):
        open_("acme/other@v2")


def test_what_the_hub_refuses_is_one_sentence_each(hub: Hub, checkpoint: Path) -> None:
    hub.add(REPOSITORY, checkpoint)
    hub.gated.add("acme/gated")
    refused = {
        "acme/nothing": r"no folder at acme/nothing, and no such repository on the hub; .* `hf auth login` if",
        f"{REPOSITORY}@v9": r"acme/tiny-llama has no revision 'v9' on the hub; give a branch, a tag or a commit",
        "acme/gated": r"acme/gated is gated on the hub: ask for access on its page, and log in with `hf auth login`",
    }
    for model, message in refused.items():
        with pytest.raises(BadInput, match=message):
            open_(model)


def test_a_checkpoint_from_the_hub_is_checked_as_any_other(hub: Hub, checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").unlink()
    hub.add(REPOSITORY, checkpoint)
    with pytest.raises(BadInput, match=r"has no tokenizer\.json"):
        open_(REPOSITORY)
