"""Manifests and engine specs are read back as they were written, and refused when they do not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model_repo.runtime.contract import EngineSpec, KVSpec, Limits, decoder_inputs
from model_repo.runtime.encoder import EncoderEngine
from model_repo.runtime.engine import Engine
from model_repo.runtime.engine_files import EngineFiles
from model_repo.runtime.errors import BadInput
from model_repo.runtime.manifest import FileRecord, Manifest, sha256_of_json
from tests.runtime.fake_executor import fake_spec
from tests.runtime.tiny_tokenizer import byte_level

SPEC = fake_spec(end_token_ids=(2, 5))


def manifest(**changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "stage": "compile",
        "recipe": {"target": "onnxruntime"},
        "recipe_sha256": sha256_of_json({"target": "onnxruntime"}),
        "inputs": (),
        "outputs": (),
        "versions": {"numpy": "2"},
        "seconds": 1.5,
        "parity": {"cosine": 1.0},
        "command": ("slipway", "compile", "x"),
        "engine": SPEC,
    }
    return Manifest(**{**values, **changes})


def write_engine(folder: Path, spec: EngineSpec = SPEC) -> Path:
    """A folder that looks like a compiled engine, with a graph that is none."""
    folder.mkdir()
    (folder / "engine.onnx").write_bytes(b"not a graph")
    byte_level().save(str(folder / "tokenizer.json"))
    outputs = tuple(FileRecord.of(folder / name, folder) for name in ("engine.onnx", "tokenizer.json"))
    manifest(outputs=outputs, engine=spec).write(folder / "engine.json")
    return folder


def test_a_manifest_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    record = FileRecord("weights/x", "ab" * 32, 7)
    for written in (
        manifest(inputs=(record,), outputs=(record, record)),
        manifest(engine=None, parity="not run: first stage"),
        manifest(engine=replace(SPEC, kind="encoder", limits=None, kv=(), hidden_size=8,
                                encoder_inputs=("input_ids",))),
    ):  # fmt: skip
        written.write(tmp_path / "stage.json")
        assert Manifest.read(tmp_path / "stage.json") == written
    assert [path.name for path in tmp_path.iterdir()] == ["stage.json"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not a readable manifest"),
        ("[]", "schema version 'list'"),
        ('{"schema_version": 99}', "schema version 99, this slipway reads 1"),
        ('{"schema_version": 1}', "does not fit the manifest schema"),
        ("\udcff", "not a readable manifest"),
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "engine.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(BadInput, match=words) as raised:
        Manifest.read(path)
    assert "engine.json" in str(raised.value)
    assert "build it again" in str(raised.value)


@pytest.mark.parametrize("change", ["missing", "unknown", "engine"])
def test_missing_and_unknown_fields_are_refused(tmp_path: Path, change: str) -> None:
    path = tmp_path / "engine.json"
    manifest().write(path)
    data = json.loads(path.read_text(encoding="utf-8"))
    if change == "missing":
        del data["versions"]
    elif change == "unknown":
        data["color"] = "red"
    else:
        data["engine"]["kv"] = [{"heads": 3}]
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(BadInput, match="build it again"):
        Manifest.read(path)


def test_an_engine_spec_is_read_back_from_json() -> None:
    assert EngineSpec.from_dict(json.loads(json.dumps(SPEC.to_dict()))) == SPEC
    with pytest.raises(BadInput, match="colour"):
        EngineSpec.from_dict({**SPEC.to_dict(), "colour": 1})
    with pytest.raises(BadInput, match="kind encoder; a decoder is needed"):
        _ = replace(SPEC, kind="encoder", limits=None).decoder_limits


def test_cache_bytes_and_pool_shapes_follow_from_the_layers() -> None:
    kv = (KVSpec(0, 2, 16, 8, 0, "float16"), KVSpec(0, 1, 4, 4, 0, "float32"))
    assert replace(SPEC, kv=kv).kv_bytes_per_token == 2 * (16 + 8) * 2 + (4 + 4) * 4
    pools = {spec.name: spec for spec in decoder_inputs(kv)}
    assert pools["key_cache_0"].shape == ("num_blocks", "block_size", 2, 16)
    assert pools["value_cache_0"].shape == ("num_blocks", "block_size", 2, 8)
    assert pools["value_cache_1"].dtype == "float32"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_batch": 0}, "max_batch is 0"),
        ({"block_size": -1}, "block_size is -1"),
        ({"max_length": 2.5}, "max_length is 2.5"),
        ({"token_budget": 2}, "token_budget is 2; it must be at least 3"),
        ({"num_blocks": 3}, "3 blocks of 4 tokens cannot hold one sequence of 16 tokens; raise num_blocks"),
    ],
)
def test_limits_that_make_no_sense_are_refused(changes: dict[str, Any], words: str) -> None:
    values: dict[str, Any] = {"max_batch": 2, "token_budget": 8, "max_length": 16, "block_size": 4,
                              "num_blocks": 4}  # fmt: skip
    assert Limits(**values).max_blocks == 4
    with pytest.raises(BadInput, match=words):
        Limits(**{**values, **changes})


def test_an_engines_folder_gives_its_spec_and_tokenizer(tmp_path: Path) -> None:
    files = EngineFiles.read(write_engine(tmp_path / "m"))
    assert files.spec == SPEC
    assert files.tokenizer is not None
    assert files.tokenizer.decode(files.tokenizer.encode("the fox")) == "the fox"


@pytest.mark.parametrize("name", ["engine.onnx", "tokenizer.json"])
@pytest.mark.parametrize("load", [Engine.load, EncoderEngine.load])
def test_a_file_that_changed_on_disk_is_refused_by_name(tmp_path: Path, name: str, load: Any) -> None:
    folder = write_engine(tmp_path / "m")
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(bytes(content))
    with pytest.raises(BadInput, match=rf"{name} has changed since it was built.*build it again"):
        load(folder)
    (folder / name).unlink()
    with pytest.raises(BadInput, match=rf"{name} is missing.*Build it again"):
        load(folder)


def test_folders_that_hold_no_engine_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no folder .*build the engine first"):
        Engine.load(tmp_path / "nowhere")
    with pytest.raises(BadInput, match=r"no manifest at .*engine\.json"):
        Engine.load(tmp_path)
    manifest(engine=None).write(tmp_path / "engine.json")
    with pytest.raises(BadInput, match="describes no engine"):
        Engine.load(tmp_path)


def test_a_graph_that_onnxruntime_does_not_load_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"does not load .*engine\.onnx.*build the engine again"):
        Engine.load(write_engine(tmp_path / "m"))


def test_an_engine_of_the_other_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="kind decoder; an encoder is needed"):
        EncoderEngine.load(write_engine(tmp_path / "decoder"))
    encoder = replace(SPEC, kind="encoder", limits=None, kv=())
    with pytest.raises(BadInput, match="kind encoder; a decoder is needed"):
        Engine.load(write_engine(tmp_path / "encoder", encoder))
