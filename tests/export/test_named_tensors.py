"""Named tensors: graphs against torch at sizes that the example does not have, and models that break their word."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from model_repo.runtime.contract import AxisSpec
from model_repo.runtime.errors import BadInput
from pipeline import ModuleExample
from pipeline.export.module import TorchModel
from pipeline.export.tensors import ExportedTensors, export_tensors
from tests.export.runners import serialized, session
from tests.pipeline import user_models


def exported(example: ModuleExample) -> ExportedTensors:
    return export_tensors(TorchModel.of(example, "test:build", 60.0), opset=24)


def outputs(made: ExportedTensors, feeds: dict[str, Any]) -> list[Any]:
    running: ort.InferenceSession = session(serialized(made.graph))
    return list(running.run(None, feeds))


IMAGES = {
    "resnet": ((2, 3, 48, 40), {"batch", "height", "width"}),
    "vit": ((5, 3, 32, 32), {"batch"}),
}


@pytest.mark.parametrize("name", IMAGES)
def test_image_models_of_transformers_are_exported_and_sizes_stay_dynamic(name: str) -> None:
    shape, axes = IMAGES[name]
    build: Callable[[], ModuleExample] = getattr(user_models, name)
    made = exported(build())
    assert {axis.name for axis in made.axes} == axes
    assert made.batched
    assert [(spec.name, spec.shape) for spec in made.outputs] == [("logits", ("batch", 5))]
    images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    with torch.no_grad():
        expected = build().module.eval()(pixel_values=torch.from_numpy(images)).logits.numpy()
    assert np.abs(expected).std() > 1e-3, "images are told apart"
    np.testing.assert_allclose(outputs(made, {"pixel_values": images})[0], expected, rtol=1e-4, atol=1e-4)


def test_types_names_and_limits_are_kept() -> None:
    made = exported(user_models.scorer())
    assert [(spec.name, spec.dtype, spec.shape) for spec in made.inputs] == [
        ("features", "float32", ("batch", 6)),
        ("kind", "int64", ("batch",)),
    ]
    assert [(spec.name, spec.dtype, spec.shape) for spec in made.outputs] == [
        ("scores", "float32", ("batch", 4)),
        ("best", "int64", ("batch",)),
        ("likely", "bool", ("batch", 4)),
    ]
    assert made.axes == (AxisSpec("batch", 1, 32),)
    assert [len(feeds["kind"]) for feeds in made.runs] == [3, 4, 1]
    assert made.batched


def test_rows_that_depend_on_each_other_are_not_batched() -> None:
    made = exported(user_models.centered())
    assert not made.batched
    assert made.outputs[0].shape == ("count", 3)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


class Baked(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(3, 4) + x


class Fixed(nn.Module):
    """Takes what is said to be dynamic at one value only, and hides it from the exporter until it runs."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 3:
            raise ValueError("three rows at most")
        return x + 1


class Random(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


class Growing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x.repeat(self.calls, 1)


class Chosen(nn.Module):
    """As many rows as are positive."""

    def forward(self, x: Tensor) -> Tensor:
        return x[x[:, 0] > 0]


class Deaf(nn.Module):
    def forward(self, x: Tensor, unread: Tensor) -> Tensor:
        return x * 2


X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
BATCH = {"x": {0: "batch"}}
BROKEN = {
    "a branch on values": (
        ModuleExample(Branching(), (X,)),
        r"test:build \(tests/export/test_named_tensors\.py:\d+, in forward: if x\.sum\(\) > 0:\).*depend on values",
    ),
    "a size that is baked in": (
        ModuleExample(Baked(), (X,), BATCH),
        r"'batch' is said to be dynamic, and 3 works; 4 does not: .*in forward: return x\.reshape\(3, 4\) \+ x",
    ),
    "a size beyond what the module takes": (
        ModuleExample(Fixed(), (X,), BATCH),
        r"4 does not: .*raised ValueError: three rows at most.*Give its limits",
    ),
    "random numbers": (ModuleExample(Random(), (X,)), r"'output' differs from run to run on the same inputs"),
    "shapes that change": (
        ModuleExample(Growing(), (X,)),
        r"has the shape \[\d+, 4\] at one run and \[\d+, 4\] at the",
    ),
}


@pytest.mark.parametrize(("example", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_a_model_that_does_not_keep_its_word_is_refused(example: ModuleExample, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        exported(example)


def test_a_size_that_the_exporter_alone_fixes_is_told_by_its_name() -> None:
    """Runs at every size, but the shapes that it computes with are Python's, which tracing takes for constants."""

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.tensor([float(len(range(x.shape[0])))])

    with pytest.raises(BadInput, match=r"takes one size only where another was promised.*batch"):
        exported(ModuleExample(Counting(), (X,), BATCH))


def test_limits_make_a_narrow_model_usable() -> None:
    made = exported(ModuleExample(Fixed(), (X,), BATCH, limits={"batch": (1, 3)}))
    assert [len(feeds["x"]) for feeds in made.runs] == [3, 2, 1]


def test_sizes_that_values_decide_are_dynamic_and_not_joined() -> None:
    made = exported(ModuleExample(Chosen(), (X,), BATCH))
    assert not made.batched
    assert isinstance(made.outputs[0].shape[0], str)
    feeds = np.array([[1.0, 2, 3, 4], [-1, 2, 3, 4]], np.float32)
    np.testing.assert_array_equal(outputs(made, {"x": feeds})[0], feeds[:1])


def test_an_input_that_is_never_read_stays() -> None:
    made = exported(ModuleExample(Deaf(), (X, X)))
    assert [value.name for value in made.graph.graph.inputs] == ["x", "unread"]
    np.testing.assert_array_equal(outputs(made, {"x": X.numpy(), "unread": X.numpy()})[0], 2 * X.numpy())


class Counted(nn.Module):
    """Asks for the number of rows the way lists are asked."""

    def forward(self, rows: Tensor) -> Tensor:
        return rows.sum(dim=1, keepdim=True).expand(len(rows), len([3, 1])) * torch.ones(len(rows), 1)


def test_the_length_of_a_tensor_is_a_size_that_may_change() -> None:
    made = exported(ModuleExample(Counted(), {"rows": torch.rand(3, 4)}, {"rows": {0: "batch"}}))
    rows = np.random.default_rng(0).random((7, 4), dtype=np.float32)
    np.testing.assert_allclose(outputs(made, {"rows": rows})[0], np.tile(rows.sum(1)[:, None], 2), rtol=1e-6)
    assert "len" not in globals(), "the exporter leaves nothing behind"
