"""The Triton models of images over a stand-in for tritonserver: who is computed with whom, and whose error it is."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from model_repo.runtime.errors import BadInput
from model_repo.runtime.image_steps import ImageSteps, Preprocessing, Resize
from model_repo.runtime.images import Preprocessor
from tests.pictures import album

PACKAGE = "model_repo.backends."
Arrays = dict[str, np.ndarray]


class TritonError(Exception):
    """As tritonserver's."""

    INVALID_ARG, UNAVAILABLE, INTERNAL = "invalid", "unavailable", "internal"


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Modules of Triton models."""
    stand_in = SimpleNamespace(
        Tensor=lambda name, array: (name, array),
        InferenceResponse=lambda tensors=(), error=None: SimpleNamespace(outputs=dict(tensors), error=error),
        TritonError=TritonError,
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", stand_in)

    def forget() -> None:
        for name in [name for name in sys.modules if name.startswith(PACKAGE)]:
            del sys.modules[name]

    forget()
    yield lambda name: importlib.import_module(PACKAGE + name)
    forget()


class Engine:
    """Remembers the shapes that were computed together; gives each image its sum and its size."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        pixels = inputs["pixel_values"]
        self.shapes.append(pixels.shape)
        if pixels.shape[2] == 13:
            raise BadInput("13 rows are too few")
        sides = np.tile(np.array(pixels.shape[2:], np.float32), (len(pixels), 1))
        return {"sum": pixels.sum(axis=(1, 2, 3)), "sides": sides}


def padded(*sizes: tuple[int, int]) -> Arrays:
    """A request with images of ones within these sizes, 7 around them."""
    height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
    pixels = np.full((len(sizes), 3, height, width), 7, np.float32)
    for row, (rows, columns) in enumerate(sizes):
        pixels[row, :, :rows, :columns] = 1
    return {"pixel_values": pixels, "image_size": np.array(sizes, np.int32)}


def answers(step: Callable[[str], ModuleType], *given: Arrays) -> tuple[Engine, list[Any]]:
    engine = Engine()
    model = object.__new__(step("image_tensors").TritonPythonModel)
    model.engine = engine
    return engine, model._answers(list(given))


def test_images_of_one_size_are_computed_together_and_alone_with_their_pixels(
    step: Callable[[str], ModuleType],
) -> None:
    sizes = [((4, 6), (5, 5)), ((4, 6),), ((5, 5), (6, 4), (4, 6))]
    engine, found = answers(step, *(padded(*each) for each in sizes))
    assert sorted(engine.shapes) == [(1, 3, 6, 4), (2, 3, 5, 5), (3, 3, 4, 6)]
    for request, each in zip(found, sizes, strict=True):
        assert request["sides"].tolist() == [list(size) for size in each]
        assert request["sum"].tolist() == [3 * rows * columns for rows, columns in each]


def test_without_sizes_all_is_image(step: Callable[[str], ModuleType]) -> None:
    engine, (found,) = answers(step, {"pixel_values": np.ones((2, 3, 5, 4), np.float32)})
    assert engine.shapes == [(2, 3, 5, 4)]
    assert found["sum"].tolist() == [60, 60]


def test_an_error_is_its_own_requests(step: Callable[[str], ModuleType]) -> None:
    beyond = {**padded((4, 6)), "image_size": np.array([[4, 7]], np.int32)}
    _, found = answers(step, padded((4, 6)), padded((13, 6), (4, 6)), beyond, padded((5, 6)))
    assert found[0]["sum"].tolist() == [72]
    assert str(found[1]) == "13 rows are too few"
    assert "image_size says 4 x 7" in str(found[2])
    assert found[3]["sum"].tolist() == [90]


class Request:
    """As tritonserver hands it over."""

    def __init__(self, **tensors: np.ndarray) -> None:
        self._tensors = tensors

    def inputs(self) -> list[Any]:
        return [
            SimpleNamespace(name=lambda name=name: name, as_numpy=lambda array=array: array)
            for name, array in self._tensors.items()
        ]


def images(*data: bytes) -> Request:
    return Request(image=np.array([[each] for each in data], object))


def test_whatever_goes_wrong_with_an_image_ends_its_request_alone(step: Callable[[str], ModuleType]) -> None:
    prepare = Preprocessor(Preprocessing(resize=Resize("bilinear", 8, 9), scale=1 / 255))

    def fails_on_small(data: bytes) -> Any:
        if data == album()["small"]:
            raise MemoryError("no room")
        return prepare(data)

    model = object.__new__(step("image_preprocess").TritonPythonModel)
    model.outputs, model.preprocessor = ["pixel_values", "original_size"], fails_on_small
    good = album()["a wide JPEG"]
    with ThreadPoolExecutor(3) as model.threads:
        found = model.execute(
            [images(good), images(good, b"x"), images(album()["small"]), images(good, good)]
        )
    assert found[0].outputs["pixel_values"].shape == (1, 3, 8, 9)
    assert found[0].outputs["original_size"].tolist() == [[77, 203]]
    assert "INVALID_ARGUMENT: image 2 of 2: the image (1 bytes)" in str(found[1].error)
    assert "INTERNAL: no room" in str(found[2].error)
    np.testing.assert_array_equal(
        found[3].outputs["pixel_values"], np.repeat(found[0].outputs["pixel_values"], 2, axis=0)
    )


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "1"),
        ({"top_k": [[2], [2]]}, "2"),
        ({"top_k": [[1], [2]]}, "same value"),
        ({"top_k": [[4]]}, "3 labels"),
    ],
)
def test_top_k_is_one_for_a_request(
    step: Callable[[str], ModuleType], settings: dict[str, list[list[int]]], told: str
) -> None:
    model = object.__new__(step("image_postprocess").TritonPythonModel)
    model.steps = ImageSteps("classification", Preprocessing(), ("a", "b", "c"), "softmax")
    logits = np.array([[0, 2, 1], [3, 0, 1]], np.float32)
    given = {name: np.array(values, np.int32) for name, values in settings.items()}
    (answer,) = model.execute([Request(logits=logits, **given)])
    if told.isdigit():
        best = [[b"b", b"c"], [b"a", b"c"]]
        assert answer.outputs["label"].tolist() == [row[: int(told)] for row in best]
        assert answer.outputs["score"].shape == (2, int(told))
    else:
        assert told in str(answer.error)


def test_the_threshold_is_a_half_by_default(step: Callable[[str], ModuleType]) -> None:
    model = object.__new__(step("image_postprocess").TritonPythonModel)
    model.steps = ImageSteps("detection", Preprocessing(), ("a", "b"), "sigmoid")
    logits = np.array([[[0.1, -1], [-0.1, 3]]], np.float32)
    boxes = np.full((1, 2, 4), 0.5, np.float32)
    inputs = {"logits": logits, "pred_boxes": boxes, "original_size": np.array([[10, 20]], np.int32)}
    (answer,) = model.execute([Request(**inputs)])
    assert answer.outputs["labels"].tolist() == [[b"b", b"a"]]
    assert answer.outputs["boxes"][0, 0].tolist() == [5, 2.5, 15, 7.5]
    (fewer,) = model.execute([Request(**inputs, threshold=np.array([[0.9]], np.float32))])
    assert fewer.outputs["num_objects"].tolist() == [[1]]
