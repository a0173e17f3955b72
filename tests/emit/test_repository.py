"""An emitted repository: whole, a true copy, of several models; or nothing at all."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

import model_repo
from model_repo.emit import emit
from model_repo.emit.files import ModelFiles
from model_repo.runtime.errors import BadInput
from model_repo.runtime.manifest import Manifest
from tests.emit.engine_folder import decoder_spec, encoder_spec, engine_folder


@dataclass(frozen=True)
class Serve:
    max_queue: int = 7
    capture_folder: str | None = "requests"
    capture_bytes: int = 5000
    default_max_tokens: int = 5
    request_timeout_seconds: float = 2.5


@pytest.fixture
def engines(tmp_path: Path) -> list[tuple[str, Path]]:
    return [
        ("talker", engine_folder(tmp_path / "talker", decoder_spec())),
        ("finder", engine_folder(tmp_path / "finder", encoder_spec())),
    ]


def config(repository: Path, model: str) -> pb.ModelConfig:
    return text_format.Parse((repository / model / "config.pbtxt").read_text(), pb.ModelConfig())


def test_two_models_share_a_repository(engines: list[tuple[str, Path]], tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    emit(engines, repository, Serve())
    models = {path.name for path in repository.iterdir()}
    assert models == {
        *("talker", "talker_preprocess", "talker_generate", "talker_postprocess", "talker_unary"),
        *("finder", "finder_preprocess", "finder_encoder"),
    }
    for model in models:
        message = config(repository, model)
        assert message.name == model
        assert (repository / model / "1").is_dir()
        for step in message.ensemble_scheduling.step:
            assert step.model_name in models


def test_ensemble_maps_fit_the_models_they_name(engines: list[tuple[str, Path]], tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    emit(engines, repository, Serve())
    for name in ("talker", "finder"):
        message = config(repository, name)
        types = {tensor.name: tensor.data_type for tensor in message.input}
        for step in message.ensemble_scheduling.step:
            model = config(repository, step.model_name)
            assert set(step.input_map) == {tensor.name for tensor in model.input}
            assert all(types[step.input_map[t.name]] == t.data_type for t in model.input)
            types |= {step.output_map[t.name]: t.data_type for t in model.output if t.name in step.output_map}
        assert all(types[tensor.name] == tensor.data_type for tensor in message.output)


def test_settings_reach_the_models(engines: list[tuple[str, Path]], tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    emit(engines, repository, Serve())
    preprocess = config(repository, "talker_preprocess").parameters
    assert preprocess["max_length"].string_value == "48"
    assert preprocess["default_max_tokens"].string_value == "5"
    assert preprocess["request_timeout_seconds"].string_value == "2.5"
    assert config(repository, "talker_generate").parameters["max_queue"].string_value == "7"
    for model in ("talker_generate", "finder_encoder"):
        captured = config(repository, model).parameters
        assert captured["capture_folder"].string_value == "requests"
        assert captured["capture_bytes"].string_value == "5000"
    assert config(repository, "talker_generate").model_transaction_policy.decoupled
    assert [list(t.dims) for t in config(repository, "finder").output] == [[24]]
    (ids,) = config(repository, "finder_encoder").input
    assert ids.allow_ragged_batch


def test_inputs_of_vllm_clients_and_genai_perf(engines: list[tuple[str, Path]], tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    emit(engines, repository, Serve())
    inputs = {tensor.name: tensor for tensor in config(repository, "talker").input}
    wanted = {
        "text_input": pb.TYPE_STRING,
        "stream": pb.TYPE_BOOL,
        "sampling_parameters": pb.TYPE_STRING,
        "exclude_input_in_output": pb.TYPE_BOOL,
        "max_tokens": pb.TYPE_INT32,
    }
    for name, data_type in wanted.items():
        assert (inputs[name].data_type, list(inputs[name].dims), inputs[name].optional) == (
            data_type,
            [1],
            True,
        )
    assert config(repository, "talker").max_batch_size == 0


def test_repository_is_a_true_copy(engines: list[tuple[str, Path]], tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    emit(engines, repository, Serve())
    originals = {name: (folder / "weights/0123abcd").read_bytes() for name, folder in engines}
    for _, folder in engines:
        shutil.rmtree(folder)
    assert not [path for path in repository.rglob("*") if path.is_symlink()]
    engine = repository / "talker_generate" / "1" / "engine"
    assert (engine / "weights/0123abcd").read_bytes() == originals["talker"]
    assert (engine / "weights/0123abcd").stat().st_nlink == 1
    Manifest.read(engine / "engine.json").verify_outputs(engine)
    assert {path.name for path in engine.iterdir()} == {
        *("engine.onnx", "weights", "tokenizer.json", "chat_template.jinja", "engine.json"),
    }


def test_version_folder_holds_all_the_code(engines: list[tuple[str, Path]], tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    emit(engines, repository, Serve())
    source = Path(model_repo.__path__[0])
    for model in (
        "talker_preprocess",
        "talker_generate",
        "talker_postprocess",
        "talker_unary",
        "finder_encoder",
    ):
        version = repository / model / "1"
        package = version / "slipway_runtime"
        for part in ("runtime", "backends"):
            copied = {path.name: path.read_bytes() for path in (package / part).glob("*.py")}
            assert copied == {path.name: path.read_bytes() for path in (source / part).glob("*.py")}
        assert not list(version.rglob("__pycache__"))
        Manifest.read(version / "files.json").verify_outputs(version)
        assert "TritonPythonModel" in (version / "model.py").read_text()
        assert "numpy>=" in (version / "requirements.txt").read_text()
    assert "onnxruntime>=1.31" in (repository / "talker_generate/1/requirements.txt").read_text()
    assert (repository / "talker_preprocess/1/chat_template.jinja").read_text() == "{{ messages }}"


def test_changed_engine_is_refused(engines: list[tuple[str, Path]], tmp_path: Path) -> None:
    (tmp_path / "finder" / "engine.onnx").write_bytes(b"graph of tinY")
    with pytest.raises(BadInput, match=r"engine\.onnx has changed"):
        emit(engines, tmp_path / "repository", Serve())
    assert not (tmp_path / "repository").exists()


def test_failure_leaves_nothing(
    engines: list[tuple[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name for path in tmp_path.iterdir()}
    write = ModelFiles.write

    def full(self: ModelFiles, repository: Path) -> None:
        if self.config.name == "talker_postprocess":
            raise OSError(28, "No space left on device")
        write(self, repository)

    monkeypatch.setattr(ModelFiles, "write", full)
    with pytest.raises(OSError, match="No space left"):
        emit(engines, tmp_path / "repository", Serve())
    assert {path.name for path in tmp_path.iterdir()} == before


def test_existing_destination_is_left_alone(engines: list[tuple[str, Path]], tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    (repository / "mine.txt").write_text("keep")
    with pytest.raises(BadInput, match="exists"):
        emit(engines, repository, Serve())
    assert [path.name for path in repository.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("name", ["a/b", "..", "", "über"])
def test_names_with_paths_are_refused(engines: list[tuple[str, Path]], tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput, match="cannot be served"):
        emit([(name, engines[0][1])], tmp_path / "repository", Serve())


def test_clashing_names_are_refused(engines: list[tuple[str, Path]], tmp_path: Path) -> None:
    talker = engines[0][1]
    with pytest.raises(BadInput, match="a_unary"):
        emit([("a", talker), ("a_unary", talker)], tmp_path / "repository", Serve())


def test_folder_without_an_engine(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"engine\.json"):
        emit([("a", tmp_path / "empty")], tmp_path / "repository", Serve())
    with pytest.raises(BadInput, match="at least one"):
        emit([], tmp_path / "repository", Serve())
