"""The config of a model of named tensors, read back by Triton's own protobuf."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from model_repo.emit import emit
from model_repo.emit.tensors import MAX_BATCH, TRITON_TYPES
from model_repo.runtime.contract import AxisSpec, EngineSpec, TensorSpec
from pipeline.export.tensor_model import DTYPES
from pipeline.recipe import ServeRecipe
from tests.emit.engine_folder import engine_folder

SPEC = EngineSpec(
    kind="tensors",
    name="images",
    target="onnxruntime",
    precision="fp32",
    graph="engine.onnx",
    plugin=None,
    vocab_size=0,
    max_length=0,
    inputs=(
        TensorSpec("pixels", "uint8", ("batch", 3, "height", "width")),
        TensorSpec("scale", "float16", ("batch",)),
    ),
    outputs=(TensorSpec("logits", "float32", ("batch", 10)), TensorSpec("best", "int64", ("batch",))),
    axes=(AxisSpec("batch", 1, None), AxisSpec("height", 8, 64), AxisSpec("width", 8, 64)),
    batched=True,
)


def emitted(spec: EngineSpec, folder: Path) -> pb.ModelConfig:
    repository = folder / "repository"
    emit([("images", engine_folder(folder / "images", spec))], repository, ServeRecipe())
    assert [path.name for path in repository.iterdir()] == ["images"]
    return text_format.Parse((repository / "images" / "config.pbtxt").read_text(), pb.ModelConfig())


def test_rows_that_stand_alone_are_batched(tmp_path: Path) -> None:
    message = emitted(SPEC, tmp_path)
    assert (message.name, message.backend, message.max_batch_size) == ("images", "python", MAX_BATCH)
    assert message.HasField("dynamic_batching")
    assert [(t.name, t.data_type, list(t.dims)) for t in message.input] == [
        ("pixels", pb.TYPE_UINT8, [3, -1, -1]),
        ("scale", pb.TYPE_FP16, [1]),
    ]
    assert [(t.name, t.data_type, list(t.dims)) for t in message.output] == [
        ("logits", pb.TYPE_FP32, [10]),
        ("best", pb.TYPE_INT64, [1]),
    ]
    assert not any(tensor.optional or tensor.allow_ragged_batch for tensor in message.input)


def test_a_batch_is_no_larger_than_the_model_takes(tmp_path: Path) -> None:
    axes = (AxisSpec("batch", 1, 6), *SPEC.axes[1:])
    assert emitted(dataclasses.replace(SPEC, axes=axes), tmp_path).max_batch_size == 6


def test_rows_that_depend_on_each_other_are_not_batched(tmp_path: Path) -> None:
    outputs = (*SPEC.outputs, TensorSpec("total", "float64", ()))
    message = emitted(dataclasses.replace(SPEC, batched=False, outputs=outputs), tmp_path)
    assert message.max_batch_size == 0
    assert not message.HasField("dynamic_batching")
    assert [list(t.dims) for t in message.input] == [[-1, 3, -1, -1], [-1]]
    assert [list(t.dims) for t in message.output] == [[-1, 10], [-1], [1]]


def test_every_type_that_models_may_have_is_served() -> None:
    assert set(TRITON_TYPES) == DTYPES
    for name in TRITON_TYPES.values():
        assert pb.DataType.Value(f"TYPE_{name}")


def test_an_engine_without_tensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="names no inputs and outputs; build it again"):
        emitted(dataclasses.replace(SPEC, inputs=()), tmp_path)
