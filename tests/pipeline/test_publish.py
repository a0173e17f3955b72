"""Publishing: old or new, never half."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

import pipeline.publish
from pipeline.publish import exchange, publish


def folder(path: Path, content: str) -> Path:
    """A folder with two files."""
    path.mkdir()
    (path / "a").write_text(content)
    (path / "b").write_text(content)
    return path


@pytest.mark.parametrize("system", ["exchange", "no exchange"])
def test_a_folder_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    if system == "no exchange":
        monkeypatch.setattr(pipeline.publish, "exchange", lambda first, second: False)
    final = tmp_path / "repository"
    for content in ("one", "two", "three"):
        publish(folder(tmp_path / ".staging-repository", content), final)
        assert {path.name: path.read_text() for path in final.iterdir()} == {"a": content, "b": content}
        assert [path.name for path in tmp_path.iterdir()] == ["repository"]


def test_a_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "new").write_text("new")
    (tmp_path / "final").write_text("old")
    publish(tmp_path / "new", tmp_path / "final")
    assert (tmp_path / "final").read_text() == "new"
    assert not (tmp_path / "new").exists()


def test_exchange_swaps_or_says_that_it_cannot(tmp_path: Path) -> None:
    first, second = folder(tmp_path / "first", "1"), folder(tmp_path / "second", "2")
    swapped = exchange(first, second)
    assert (first / "a").read_text() == ("2" if swapped else "1")
    with pytest.raises(FileNotFoundError):
        exchange(first, tmp_path / "none")


def test_a_system_without_the_call_cannot_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Bare:
        """A C library from before renameat2."""

    monkeypatch.setattr(ctypes, "CDLL", lambda *arguments, **options: Bare())
    assert exchange(folder(tmp_path / "a", "1"), folder(tmp_path / "b", "2")) is False
