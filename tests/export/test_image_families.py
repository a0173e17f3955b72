"""Image models from the checkpoint to answers: pixel values, scores, boxes and embeddings are those of transformers.

Each family's graph is run by ONNX Runtime between the steps that the server runs, on pictures of every kind.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers
from PIL import Image, ImageOps

from model_repo.backends.interface import DETECTED, RANKED
from model_repo.runtime.classification import ranked
from model_repo.runtime.detection import detected
from model_repo.runtime.errors import BadInput
from model_repo.runtime.image_steps import ImageSteps, Preprocessing
from model_repo.runtime.images import Preprocessor, batch
from pipeline.export.module import TorchModel
from pipeline.export.tensors import export_tensors
from pipeline.sources.image_processor import TOLERANCE
from tests.export.image_families import FAMILIES, REFUSED, Family
from tests.export.runners import serialized, session
from tests.pictures import album
from tests.sources.checkpoints import opened

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "images.md"
ALBUM = album()
WIDE = pytest.mark.wide
Array = npt.NDArray[Any]


@dataclass
class Carried:
    """A family's checkpoint, as transformers and as Slipway see it."""

    family: Family
    folder: Path

    @cached_property
    def model(self) -> TorchModel:
        loaded = opened(self.folder).load()
        assert isinstance(loaded, TorchModel)
        return loaded

    @property
    def steps(self) -> ImageSteps:
        assert self.model.images is not None
        return self.model.images

    @cached_property
    def running(self) -> Any:
        made = export_tensors(self.model, opset=24)
        assert made.batched
        return session(serialized(made.graph))

    @cached_property
    def processor(self) -> Any:
        return transformers.AutoImageProcessor.from_pretrained(self.folder, backend="pil")

    def answer(self, data: bytes, top_k: int = 3, threshold: float = 0.5) -> dict[str, Array]:
        """What the server's steps give for one image."""
        prepared = batch([Preprocessor(self.steps.preprocessing)(data)])
        made = {"pixel_values": prepared.values, "pixel_mask": prepared.mask}
        found = self.running.run(
            [each.name for each in self.running.get_outputs()],
            {each.name: made[each.name] for each in self.running.get_inputs()},
        )
        if self.steps.task == "classification":
            return dict(zip(RANKED, ranked(*found, self.steps, top_k), strict=True))
        if self.steps.task == "embedding":
            return {"embedding": found[0]}
        (size,) = prepared.original_sizes.tolist()
        objects = detected(*found, [size], self.steps, threshold)
        return {field.name: array for field, array in zip(DETECTED, objects, strict=True)}


def loaded(data: bytes, steps: Preprocessing) -> Image.Image:
    """The picture as transformers is given it: turned, and without transparency unless its processor sees to that."""
    picture = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if steps.over_white:
        return picture
    return picture.convert("RGB" if steps.channels == 3 else "L")


@pytest.fixture(
    scope="module",
    params=[pytest.param(each, id=each.name, marks=WIDE if each.wide else ()) for each in FAMILIES],
)
def carried(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Carried:
    return Carried(request.param, request.param.checkpoint(tmp_path_factory.mktemp("family") / "checkpoint"))


def test_pixels_are_those_of_the_image_processor(carried: Carried) -> None:
    steps = carried.steps.preprocessing
    prepare = Preprocessor(steps)
    for name, data in ALBUM.items():
        expected = carried.processor(images=[loaded(data, steps)], return_tensors="np")
        found = batch([prepare(data)])
        np.testing.assert_allclose(
            found.values, expected["pixel_values"], rtol=0, atol=TOLERANCE, err_msg=name
        )
        if steps.pad is not None:
            np.testing.assert_array_equal(found.mask, expected["pixel_mask"], err_msg=name)


def test_answers_are_those_of_transformers(carried: Carried) -> None:
    {"classification": _labels, "detection": _objects, "embedding": _embeddings}[carried.steps.task](carried)


def _labels(carried: Carried) -> None:
    """transformers' pipeline; what is transparent it shows its own way, and it knows no grey images."""
    steps = carried.steps.preprocessing
    names = [name for name in ALBUM if not (steps.over_white and ("see" in name or "hole" in name))]
    found = []
    if steps.channels == 3:
        reference = transformers.pipeline(
            "image-classification", model=str(carried.folder), image_processor=carried.processor
        )
    for name in names:
        answer = carried.answer(ALBUM[name], top_k=3)
        if steps.channels == 3:
            expected = reference(base64.b64encode(ALBUM[name]).decode(), top_k=3)
        else:
            expected = _ranked(carried, ALBUM[name])[:3]
        assert [label.decode() for label in answer["label"][0]] == [each["label"] for each in expected], name
        assert answer["score"][0] == pytest.approx([each["score"] for each in expected], abs=1e-4), name
        found.append(answer["scores"])
    assert np.std(np.concatenate(found), axis=0).max() > 0.003, "too dull"


def _ranked(carried: Carried, data: bytes) -> list[dict[str, Any]]:
    model = transformers.AutoModelForImageClassification.from_pretrained(carried.folder).eval()
    inputs = carried.processor(images=[loaded(data, carried.steps.preprocessing)], return_tensors="pt")
    with torch.no_grad():
        scores = model(**inputs).logits.softmax(-1)[0].tolist()
    ranked = sorted(range(len(scores)), key=lambda place: -scores[place])
    return [{"label": model.config.id2label[place], "score": scores[place]} for place in ranked]


@torch.no_grad()
def _objects(carried: Carried) -> None:
    model = transformers.AutoModelForObjectDetection.from_pretrained(carried.folder).eval()
    counts = []
    for name, data in ALBUM.items():
        picture = loaded(data, carried.steps.preprocessing)
        result = model(**carried.processor(images=[picture], return_tensors="pt"))
        best = carried.processor.post_process_object_detection(result, threshold=0.0)[0]["scores"]
        threshold = float(best.median())  # so that some are in and some are out
        (expected,) = carried.processor.post_process_object_detection(
            result, threshold=threshold + 1e-5, target_sizes=[(picture.height, picture.width)]
        )
        answer = carried.answer(data, threshold=threshold + 1e-5)
        count = len(expected["scores"])
        assert answer["num_objects"].tolist() == [[count]], name
        assert [label.decode() for label in answer["labels"][0]] == [
            model.config.id2label[place] for place in expected["labels"].tolist()
        ]
        np.testing.assert_allclose(answer["scores"][0], expected["scores"].numpy(), atol=1e-4)
        np.testing.assert_allclose(answer["boxes"][0], expected["boxes"].numpy(), atol=0.02, err_msg=name)
        counts.append(count)
    assert max(counts) > 1, "too dull"


@torch.no_grad()
def _embeddings(carried: Carried) -> None:
    """Of a model of two towers what its forward pass gives; of one tower the projection, or else the pooler's."""
    kind, config = carried.family.model()
    model = getattr(transformers, kind).from_pretrained(carried.folder).eval()
    text = {"input_ids": torch.tensor([[1, 2, 98]])} if hasattr(config, "text_config") else {}
    found = []
    for name, data in ALBUM.items():
        picture = loaded(data, carried.steps.preprocessing)
        result = model(**carried.processor(images=[picture], return_tensors="pt"), **text)
        expected = result["image_embeds" if "image_embeds" in result else "pooler_output"].numpy()
        found.append(carried.answer(data)["embedding"])
        np.testing.assert_allclose(found[-1], expected, rtol=1e-4, atol=1e-4, err_msg=name)
    assert np.std(np.concatenate(found), axis=0).mean() > 0.01, "too dull"


@pytest.mark.parametrize(
    ("family", "message"),
    [pytest.param(each, message, id=each.name) for each, message, _ in REFUSED],
)
def test_what_is_not_carried_is_refused_with_the_reason(family: Family, message: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=message):
        export_tensors(opened(family.checkpoint(tmp_path / "checkpoint")).load(), opset=24)


def test_the_table_in_the_docs_is_this_one() -> None:
    """`python -m tests.export.test_image_families` writes it."""
    assert DOCS.read_text() == with_table(DOCS.read_text())


def table() -> str:
    """Families and their steps, as Markdown."""
    lines = [
        "| family | task | image processor | its steps in the test | answers |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {each.name}{' *' if each.wide else ''} | {each.task} | {each.processor} | {each.steps} | equal |"
        for each in FAMILIES
    ]
    lines += ["", "| family | refused |", "| --- | --- |"]
    lines += [f"| {each.name} | {reason} |" for each, _, reason in REFUSED]
    return "\n".join(lines) + "\n"


def with_table(text: str) -> str:
    """`text` with what lies between the marks replaced."""
    begin, end = (
        f"<!-- {mark} of what tests/export/test_image_families.py writes -->\n" for mark in ("begin", "end")
    )
    before, _, rest = text.partition(begin)
    return before + begin + table() + end + rest.partition(end)[2]


if __name__ == "__main__":
    DOCS.write_text(with_table(DOCS.read_text()))
