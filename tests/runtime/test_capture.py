"""Captured requests: the file's form, its bound, and what becomes of it when a server starts again."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest

from model_repo.runtime.capture import HEADER, Capture, decoded
from model_repo.runtime.errors import BadInput


def captured(path: Path) -> list[list[int]]:
    """The requests in a file, each line read by itself; the first line must be a capture's."""
    first, *lines = path.read_text(encoding="utf-8").splitlines()
    assert HEADER in json.loads(first)
    return [json.loads(line)["input_ids"] for line in lines]


def test_requests_are_lines_behind_one_that_names_the_model(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    capture = Capture(path, "demo")
    capture.write([5, 17, 9])
    capture.write(np.array([1, 2], np.int32).tolist())
    assert captured(path) == [[5, 17, 9], [1, 2]]  # before it is closed: a kill loses nothing
    assert json.loads(path.read_text().splitlines()[0])[HEADER] == {"version": 1, "model": "demo"}
    capture.close()
    capture.write([3])
    assert captured(path) == [[5, 17, 9], [1, 2]]


def test_a_file_never_grows_beyond_its_bound(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    capture = Capture(path, "demo", max_bytes=300)
    for length in range(1, 60):
        capture.write(list(range(length)))
        assert path.stat().st_size <= 300
    kept = captured(path)
    assert kept
    assert kept == [list(range(length)) for length in range(1, len(kept) + 1)]
    capture.write([1])  # a short one may still fit
    assert path.stat().st_size <= 300


def test_a_server_that_starts_again_goes_on_and_repairs_a_broken_line(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    Capture(path, "demo").write([1])
    with path.open("ab") as file:
        file.write(b'{"input_ids": [4, 5')
    again = Capture(path, "demo")
    again.write([2])
    assert captured(path) == [[1], [2]]
    size = path.stat().st_size
    full = Capture(path, "demo", max_bytes=size)
    full.write([3])
    assert path.stat().st_size == size


def test_a_file_of_something_else_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    for text in (
        "notes\n",
        '{"input_ids": [1]}\n',
        '{"slipway_capture": {"version": 1, "model": "other"}}\n',
    ):
        path.write_text(text)
        with pytest.raises(BadInput, match="holds no captured requests of 'demo'; name another file"):
            Capture(path, "demo")
        assert path.read_text() == text
    with pytest.raises(BadInput, match="cannot be captured"):
        Capture(tmp_path / "none" / "requests.jsonl", "demo")


def test_many_threads_write_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    capture = Capture(path, "demo")
    threads = [
        threading.Thread(target=lambda n=n: [capture.write([n] * 50) for _ in range(40)]) for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(captured(path)) == sorted([n] * 50 for n in range(8) for _ in range(40))


def test_a_full_disk_ends_the_capture_and_not_the_request(tmp_path: Path) -> None:
    capture = Capture(tmp_path / "r.jsonl", "demo")
    capture._file.close()  # type: ignore[union-attr]
    capture._file = open("/dev/full", "ab", buffering=0)  # noqa: PTH123, SIM115
    capture.write([1, 2, 3])
    capture.write([4])
    assert captured(tmp_path / "r.jsonl") == []


def test_tensors_come_back_as_they_were(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    given = {
        "x": random.standard_normal((2, 3)).astype(np.float32),
        "ids": random.integers(0, 9, (2,)),
        "half": random.standard_normal((3, 2)).astype(np.float16).T,  # not in C order
        "mask": np.array([[True, False]]),
        "one": np.float64(2.5).reshape(()),
        "none": np.zeros((0, 4), np.float32),
    }
    path = tmp_path / "requests.jsonl"
    Capture(path, "scorer").write_tensors(given)
    entry = json.loads(path.read_text().splitlines()[1])["tensors"]
    assert set(entry) == set(given)
    for name, array in given.items():
        found = decoded(entry[name])
        assert found.dtype == array.dtype
        assert np.array_equal(found, array)
    for broken in ({}, {"dtype": "float32", "shape": [3], "data": "AAAA"}, {**entry["x"], "data": "?"}, None):
        with pytest.raises(ValueError, match="no tensor"):
            decoded(broken)


def test_tensors_never_make_a_file_grow_beyond_its_bound(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    capture = Capture(path, "scorer", max_bytes=1000)
    for size in (10, 1000, 100, 20):
        capture.write_tensors({"x": np.zeros(size, np.float32)})
    kept = [json.loads(line)["tensors"]["x"]["shape"] for line in path.read_text().splitlines()[1:]]
    assert kept == [[10], [100], [20]]
    assert path.stat().st_size <= 1000
