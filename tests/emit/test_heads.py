"""Repositories of encoders with heads: what apps send and get, and that each step gets what it reads."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from model_repo.emit import emit
from model_repo.runtime.contract import EngineSpec, Head
from model_repo.runtime.manifest import Manifest
from tests.emit.engine_folder import encoder_spec, engine_folder

TYPED = ("input_ids", "attention_mask", "token_type_ids")
HEADS = {
    "classifier": Head("sequence_classification", ("a", "b", "c"), "softmax"),
    "reranker": Head("sequence_classification", ("LABEL_0",), "none"),
    "tagger": Head("token_classification", ("O", "B-X"), "softmax"),
}


@dataclass(frozen=True)
class Serve:
    max_queue: int = 7
    default_max_tokens: int = 5
    capture_folder: str | None = None
    capture_bytes: int = 5000
    request_timeout_seconds: float = 2.5


def spec(name: str, inputs: tuple[str, ...] = TYPED) -> EngineSpec:
    return replace(encoder_spec(), hidden_size=None, head=HEADS[name], encoder_inputs=inputs)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("heads")
    engines = [(name, engine_folder(root / name, spec(name))) for name in HEADS]
    engines.append(("untyped", engine_folder(root / "untyped", spec("classifier", TYPED[:2]))))
    emit(engines, root / "repository", Serve())
    return root / "repository"


def config(repository: Path, model: str) -> pb.ModelConfig:
    return text_format.Parse((repository / model / "config.pbtxt").read_text(), pb.ModelConfig())


def tensors(message: pb.ModelConfig) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    return (
        {tensor.name: list(tensor.dims) for tensor in message.input},
        {tensor.name: list(tensor.dims) for tensor in message.output},
    )


@pytest.mark.parametrize(
    ("name", "inputs", "outputs"),
    [
        ("classifier", {"text_input": [1], "text_pair": [1]}, {"label": [1], "score": [1], "scores": [3]}),
        ("reranker", {"text_input": [1], "text_pair": [1]}, {"score": [1]}),
        ("tagger", {"text_input": [1]}, {"entities": [1]}),
    ],
)
def test_apps_see_texts_and_labels(
    repository: Path, name: str, inputs: dict[str, list[int]], outputs: dict[str, list[int]]
) -> None:
    message = config(repository, name)
    assert tensors(message) == (inputs, outputs)
    assert {t.name for t in message.input if t.optional} == inputs.keys() - {"text_input"}
    assert message.max_batch_size == 64


@pytest.mark.parametrize("name", [*HEADS, "untyped"])
def test_each_step_gets_what_it_reads(repository: Path, name: str) -> None:
    message = config(repository, name)
    known = {tensor.name: (tensor.data_type, list(tensor.dims)) for tensor in message.input}
    for step in message.ensemble_scheduling.step:
        model = config(repository, step.model_name)
        assert set(step.input_map) == {tensor.name for tensor in model.input}
        for tensor in model.input:
            assert known[step.input_map[tensor.name]] == (tensor.data_type, list(tensor.dims))
        known |= {tensor.name: (tensor.data_type, list(tensor.dims)) for tensor in model.output}
    assert all(known[tensor.name] == (tensor.data_type, list(tensor.dims)) for tensor in message.output)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("classifier", {"input_ids": [-1], "token_type_ids": [-1]}),
        ("untyped", {"input_ids": [-1]}),  # the model does not tell the two texts apart
        ("tagger", {"input_ids": [-1]}),  # there is no second text
    ],
)
def test_engines_read_token_types_where_they_matter(
    repository: Path, name: str, read: dict[str, list[int]]
) -> None:
    message = config(repository, f"{name}_encoder")
    assert tensors(message)[0] == read
    assert all(tensor.allow_ragged_batch for tensor in message.input)


@pytest.mark.parametrize("name", HEADS)
def test_the_last_step_knows_the_head(repository: Path, name: str) -> None:
    message = config(repository, f"{name}_postprocess")
    head = Head.from_dict(json.loads(message.parameters["head"].string_value))
    assert head == HEADS[name]
    engine = Manifest.read(repository / f"{name}_encoder" / "1" / "engine" / "engine.json").engine
    assert engine is not None
    assert engine.head == HEADS[name]
    logits = {"classifier": [3], "reranker": [1], "tagger": [-1, 2]}[name]
    assert tensors(message)[0]["logits"] == logits


def test_the_names_of_scores_lie_where_triton_looks_for_them(repository: Path) -> None:
    message = config(repository, "classifier")
    files = {tensor.name: tensor.label_filename for tensor in message.output}
    assert files == {"label": "", "score": "", "scores": "labels.txt"}
    assert (repository / "classifier" / "labels.txt").read_text() == "a\nb\nc\n"
