"""Repositories of models of images: what apps send and get, and that each step gets what it reads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from model_repo.backends.interface import DETECTED, RANKED
from model_repo.emit import emit
from model_repo.emit.images import served_outputs
from model_repo.runtime.contract import AxisSpec, EngineSpec, TensorSpec
from model_repo.runtime.errors import BadInput
from model_repo.runtime.image_steps import ImageSteps, Normalization, Preprocessing, Resize
from model_repo.runtime.manifest import Manifest
from pipeline.foreground import served_models
from pipeline.recipe import ServeRecipe
from tests.emit.engine_folder import engine_folder

LABELS = ("cat", "dog\nhouse", "gull")
BATCH = AxisSpec("batch", 1, 16)
SIDES = (AxisSpec("height", 33, 96), AxisSpec("width", 33, 96))
LOGITS = TensorSpec("logits", "float32", ("batch", 3))
OBJECTS = (
    TensorSpec("logits", "float32", ("batch", 7, 4)),
    TensorSpec("pred_boxes", "float32", ("batch", 7, 4)),
)
SQUARE = Preprocessing(
    resize=Resize("bicubic", 32, 48), scale=1 / 255, normalizations=(Normalization((0.5,) * 3, (0.1,) * 3),)
)
BOUNDED = Preprocessing(resize=Resize("bilinear", shortest_edge=64, longest_edge=96), scale=1 / 255)
PADDED = replace(BOUNDED, pad=(96, 96))


def pixels(*size: int | str) -> TensorSpec:
    return TensorSpec("pixel_values", "float32", ("batch", 3, *size))


def spec(images: ImageSteps, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> EngineSpec:
    sides = SIDES if "height" in inputs[0].shape else ()
    return EngineSpec(
        kind="tensors",
        name="images",
        target="onnxruntime",
        precision="fp32",
        graph="engine.onnx",
        plugin=None,
        vocab_size=0,
        max_length=0,
        inputs=inputs,
        outputs=outputs,
        axes=(BATCH, *sides),
        batched=True,
        images=images,
    )


MASK = TensorSpec("pixel_mask", "int64", ("batch", 96, 96))
SPECS = {
    "classifier": spec(ImageSteps("classification", SQUARE, LABELS, "softmax"), (pixels(32, 48),), (LOGITS,)),
    "detector": spec(
        ImageSteps("detection", BOUNDED, LABELS, "softmax"), (pixels("height", "width"),), OBJECTS
    ),
    "padded": spec(ImageSteps("detection", PADDED, LABELS, "sigmoid"), (pixels(96, 96), MASK), OBJECTS),
    "tower": spec(
        ImageSteps("embedding", SQUARE),
        (pixels(32, 48),),
        (TensorSpec("embedding", "float32", ("batch", 8)),),
    ),
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    engines = [(name, engine_folder(root / name, each)) for name, each in SPECS.items()]
    emit(engines, root / "repository", ServeRecipe())
    return root / "repository"


def config(repository: Path, model: str) -> pb.ModelConfig:
    return text_format.Parse((repository / model / "config.pbtxt").read_text(), pb.ModelConfig())


def test_each_model_has_its_steps(repository: Path) -> None:
    steps = {"": SPECS, "_preprocess": SPECS, "_tensors": SPECS, "_postprocess": SPECS.keys() - {"tower"}}
    assert {path.name for path in repository.iterdir()} == {
        f"{name}{suffix}" for suffix, names in steps.items() for name in names
    }
    assert served_models(repository) == dict.fromkeys(SPECS, "images")


@pytest.mark.parametrize(
    ("name", "inputs", "outputs"),
    [
        ("classifier", {"image": [1], "top_k": [1]}, {"label": [-1], "score": [-1], "scores": [3]}),
        (
            "detector",
            {"image": [1], "threshold": [1]},
            {"num_objects": [1], "boxes": [-1, 4], "scores": [-1], "labels": [-1]},
        ),
        ("tower", {"image": [1]}, {"embedding": [8]}),
    ],
)
def test_apps_see_images_and_answers(
    repository: Path, name: str, inputs: dict[str, list[int]], outputs: dict[str, list[int]]
) -> None:
    message = config(repository, name)
    assert {tensor.name: list(tensor.dims) for tensor in message.input} == inputs
    assert {tensor.name: list(tensor.dims) for tensor in message.output} == outputs
    assert {tensor.name for tensor in message.input if tensor.optional} == inputs.keys() - {"image"}
    assert message.max_batch_size == 16, "as many as the engine takes"
    steps = SPECS[name].images
    assert steps is not None
    assert served_outputs(steps) == tuple(outputs)


@pytest.mark.parametrize("name", SPECS)
def test_each_step_gets_what_it_reads(repository: Path, name: str) -> None:
    message = config(repository, name)
    known = {tensor.name: (tensor.data_type, list(tensor.dims)) for tensor in message.input}
    for step in message.ensemble_scheduling.step:
        model = config(repository, step.model_name)
        assert model.max_batch_size == message.max_batch_size
        assert model.HasField("dynamic_batching")
        assert set(step.input_map) == {tensor.name for tensor in model.input}
        for tensor in model.input:
            assert known[step.input_map[tensor.name]] == (tensor.data_type, list(tensor.dims))
        known |= {
            step.output_map[tensor.name]: (tensor.data_type, list(tensor.dims))
            for tensor in model.output
            if tensor.name in step.output_map
        }
    assert all(known[tensor.name] == (tensor.data_type, list(tensor.dims)) for tensor in message.output)


def test_images_of_any_size_share_a_batch_and_say_where_they_end(repository: Path) -> None:
    message = config(repository, "detector_tensors")
    assert {tensor.name: list(tensor.dims) for tensor in message.input} == {
        "pixel_values": [3, -1, -1],
        "image_size": [2],
    }
    assert all(tensor.allow_ragged_batch for tensor in message.input)
    assert [tensor.name for tensor in message.input if tensor.optional] == ["image_size"]
    model = (repository / "detector_tensors" / "1" / "model.py").read_text()
    assert "backends.image_tensors" in model
    assert "backends.named_tensors" in (repository / "padded_tensors" / "1" / "model.py").read_text()
    read = {tensor.name: list(tensor.dims) for tensor in config(repository, "padded_tensors").input}
    assert read == {"pixel_values": [3, 96, 96], "pixel_mask": [96, 96]}


@pytest.mark.parametrize("name", SPECS)
def test_the_steps_know_what_to_do(repository: Path, name: str) -> None:
    images = SPECS[name].images
    assert images is not None
    first = config(repository, f"{name}_preprocess").parameters["preprocessing"].string_value
    assert Preprocessing.from_dict(json.loads(first)) == images.preprocessing
    if images.task != "embedding":
        last = config(repository, f"{name}_postprocess").parameters["images"].string_value
        assert ImageSteps.from_dict(json.loads(last)) == images
    engine = Manifest.read(repository / f"{name}_tensors" / "1" / "engine" / "engine.json").engine
    assert engine is not None
    assert engine.images == images
    requirements = (repository / f"{name}_preprocess" / "1" / "requirements.txt").read_text()
    assert "pillow>=12\n" in requirements
    assert "torch" not in requirements


def test_the_names_of_scores_lie_where_triton_looks_for_them(repository: Path) -> None:
    files = {tensor.name: tensor.label_filename for tensor in config(repository, "classifier").output}
    assert files == {"label": "", "score": "", "scores": "labels.txt"}
    assert (repository / "classifier" / "labels.txt").read_text() == "cat\ndog house\ngull\n"
    assert not (repository / "detector" / "labels.txt").exists()


def test_the_tables_name_the_outputs() -> None:
    assert RANKED == ("label", "score", "scores")
    assert tuple(field.name for field in DETECTED) == ("num_objects", "boxes", "scores", "labels")


def test_batches_of_large_images_are_small(tmp_path: Path) -> None:
    """12 images of 3 x 1333 x 1333 floats are 256 MB."""
    wide = replace(
        SPECS["detector"], axes=(AxisSpec("batch"), AxisSpec("height", 65, 1333), AxisSpec("width", 65, 1333))
    )
    emit([("wide", engine_folder(tmp_path / "engine", wide))], tmp_path / "repository", ServeRecipe())
    sizes = {
        config(tmp_path / "repository", f"wide{step}").max_batch_size
        for step in ("", "_preprocess", "_tensors")
    }
    assert sizes == {12}


def test_images_that_depend_on_each_other_are_refused(tmp_path: Path) -> None:
    engine = engine_folder(tmp_path / "engine", replace(SPECS["classifier"], batched=False))
    with pytest.raises(BadInput, match="depends on the others of its batch"):
        emit([("images", engine)], tmp_path / "repository", ServeRecipe())
    assert not (tmp_path / "repository").exists()
