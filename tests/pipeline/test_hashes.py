"""The memory of hashes: right after every change that the file system shows, and not read again without one."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

import pipeline.hashes
from pipeline.hashes import HashCache


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every file that was really read."""
    seen: list[Path] = []

    def counted(path: Path) -> str:
        seen.append(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(pipeline.hashes, "sha256_of", counted)
    return seen


def test_an_unchanged_file_is_read_once_also_by_the_next_process(tmp_path: Path, reads: list[Path]) -> None:
    file = tmp_path / "big"
    file.write_bytes(b"content")
    cache = HashCache(tmp_path / ".hashes.json")
    expected = hashlib.sha256(b"content").hexdigest()
    assert [cache.sha256(file), cache.sha256(file)] == [expected, expected]
    cache.save()
    assert HashCache(tmp_path / ".hashes.json").sha256(file) == expected
    assert len(reads) == 1


@pytest.mark.parametrize("change", ["content", "time", "inode"])
def test_a_changed_file_is_read_again(tmp_path: Path, reads: list[Path], change: str) -> None:
    file = tmp_path / "big"
    file.write_bytes(b"content")
    before = file.stat()
    cache = HashCache(tmp_path / ".hashes.json")
    cache.sha256(file)
    if change == "content":
        file.write_bytes(b"other content")
    elif change == "time":
        file.write_bytes(b"CONTENT")
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    else:
        (tmp_path / "new").write_bytes(b"CONTENT")
        os.utime(tmp_path / "new", ns=(before.st_atime_ns, before.st_mtime_ns))
        (tmp_path / "new").replace(file)
    assert cache.sha256(file) == hashlib.sha256(file.read_bytes()).hexdigest()
    assert len(reads) == 2


def test_a_damaged_memory_is_no_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for text in ("", "[1]", "{", '{"a": 3}'):
        (tmp_path / ".hashes.json").write_text(text)
        cache = HashCache(tmp_path / ".hashes.json")
        assert cache.sha256(tmp_path / "file") == hashlib.sha256(b"x").hexdigest()


def test_files_that_are_gone_are_forgotten(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "gone").write_bytes(b"y")
    cache = HashCache(tmp_path / ".hashes.json")
    cache.sha256(tmp_path / "file")
    cache.sha256(tmp_path / "gone")
    (tmp_path / "gone").unlink()
    cache.save()
    text = (tmp_path / ".hashes.json").read_text()
    assert str(tmp_path / "file") in text
    assert str(tmp_path / "gone") not in text
