"""Manifests: written and read back, refused in words, files verified by content."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from model_repo.runtime.contract import EngineSpec, KVSpec, Limits
from model_repo.runtime.errors import BadInput
from model_repo.runtime.manifest import FileRecord, Manifest, sha256_of_json

ENGINE = EngineSpec(
    kind="decoder",
    name="m",
    target="onnxruntime",
    precision="fp32",
    graph="engine.onnx",
    plugin="lib.so",
    vocab_size=10,
    max_length=64,
    end_token_ids=(1, 2),
    kv=(KVSpec(0, 2, 16, 16, 0, "float32"), KVSpec(1, 2, 16, 8, 128, "float32")),
    limits=Limits(4, 64, 64, 16, 32),
)


def manifest(folder: Path, engine: EngineSpec | None = ENGINE) -> Manifest:
    """A manifest of one output, `data`, which is written to `folder`."""
    (folder / "data").write_bytes(b"content")
    return Manifest(
        stage="compile",
        recipe={"target": {"threads": 2}},
        recipe_sha256="0" * 64,
        inputs=(FileRecord("in", "1" * 64, 3),),
        outputs=(FileRecord.of(folder / "data", folder),),
        versions={"onnx": "1"},
        seconds=1.5,
        parity={"against": "lower", "min_cosine": 1.0},
        command=("slipway", "compile", "x"),
        engine=engine,
        details={"key": "k"},
    )


@pytest.mark.parametrize(
    "engine", [ENGINE, None, dataclasses.replace(ENGINE, kind="encoder", kv=(), limits=None)]
)
def test_what_is_written_is_read_back(tmp_path: Path, engine: EngineSpec | None) -> None:
    written = manifest(tmp_path, engine)
    written.write(tmp_path / "engine.json")
    assert Manifest.read(tmp_path / "engine.json") == written
    assert {path.name for path in tmp_path.iterdir()} == {"data", "engine.json"}


def test_files_are_verified_by_content(tmp_path: Path) -> None:
    written = manifest(tmp_path)
    written.verify_outputs(tmp_path)
    (tmp_path / "data").write_bytes(b"CONTENT")
    with pytest.raises(BadInput, match="data has changed since it was built"):
        written.verify_outputs(tmp_path)
    (tmp_path / "data").unlink()
    with pytest.raises(BadInput, match="data is missing"):
        written.verify_outputs(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no manifest at"),
        ("", "not a readable manifest"),
        ("[]", "schema version 'list'"),
        ('{"schema_version": 99}', "schema version 99, this slipway reads 1"),
        ('{"schema_version": 1}', "does not fit the manifest schema"),
    ],
)
def test_unreadable_manifests_are_refused(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "engine.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(BadInput, match=words):
        Manifest.read(path)


def test_an_unknown_field_of_the_engine_is_refused(tmp_path: Path) -> None:
    manifest(tmp_path).write(tmp_path / "engine.json")
    data = json.loads((tmp_path / "engine.json").read_text())
    data["engine"]["wings"] = 2
    (tmp_path / "engine.json").write_text(json.dumps(data))
    with pytest.raises(BadInput, match="wings"):
        Manifest.read(tmp_path / "engine.json")


def test_hashes_of_json_do_not_depend_on_the_order_of_keys() -> None:
    assert sha256_of_json({"a": 1, "b": [1, 2]}) == sha256_of_json({"b": [1, 2], "a": 1})
    assert sha256_of_json({"a": 1}) != sha256_of_json({"a": 2})
