"""A classifier, a detector and a tower through a real server: encoded images in, transformers' answers out."""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
import tritonclient.grpc as grpcclient
from PIL import Image
from tritonclient.utils import InferenceServerException

from model_repo.emit import emit
from model_repo.runtime.images import Preprocessor
from model_repo.runtime.manifest import Manifest
from model_repo.runtime.tensors import TensorEngine
from pipeline import Recipe, build
from pipeline.client import tensor
from pipeline.foreground import how_to_call, served_models
from pipeline.recipe import ServeRecipe
from pipeline.serve import Server, server
from tests.e2e.conftest import metric, until
from tests.export.image_configs import NAMES
from tests.export.image_families import family
from tests.pictures import album

DOCS = (Path(__file__).resolve().parents[2] / "docs" / "images.md").read_text(encoding="utf-8")
MODELS = {"vit": "ViT", "detr": "DETR", "clip": "CLIP, image tower"}
"""Served name -> family."""
SHOWN = {
    name: data
    for name, data in album().items()
    if name not in ("see-through", "a palette with a hole", "small")
}
"""Pictures that transformers' own ways of opening them agree on, and wide enough for the detector."""
IMAGES = tuple(SHOWN.values())
STAGES = ("export", "fuse", "lower", "compile")
INT8_STAGES = ("export", "fuse", "calibrate", "quantize", "lower", "compile")


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small ResNet in int8, calibrated on the pictures that it is asked about."""
    root = tmp_path_factory.mktemp("int8")
    pictures = root / "pictures"
    pictures.mkdir()
    for place, data in enumerate(IMAGES):
        (pictures / f"{place}.png").write_bytes(data)
    recipe = {
        "source": {"model": str(family("ResNet").checkpoint(root / "resnet"))},
        "calibrate": {"data": str(pictures)},
        "quantize": {"precision": "int8"},
    }
    return build(Recipe.from_dict(recipe), root / "built", stages=INT8_STAGES).folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("images")
    return {name: family(kind).checkpoint(root / name) for name, kind in MODELS.items()}


@pytest.fixture(scope="module")
def repository(checkpoints: dict[str, Path], int8: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    folders = [
        (name, build(Recipe.for_model(str(path)), root / name, stages=STAGES).folder)
        for name, path in checkpoints.items()
    ]
    emit([*folders, ("resnet_int8", int8)], root / "repository", ServeRecipe())
    return root / "repository"


@pytest.fixture(scope="module")
def serving(repository: Path) -> Iterator[Server]:
    with server(repository, drain_seconds=5) as started:
        yield started


def image_input(*images: bytes) -> Any:
    return tensor("image", np.array([[image] for image in images], dtype=object))


def ask(serving: Server, model: str, *images: bytes, **settings: Any) -> dict[str, Any]:
    """One request with several images; settings are given once for each."""
    types = {"top_k": np.int32, "threshold": np.float32}
    inputs = [image_input(*images)] + [
        tensor(name, np.full((len(images), 1), value, types[name])) for name, value in settings.items()
    ]
    with grpcclient.InferenceServerClient(serving.grpc) as client:
        result = client.infer(model, inputs)
    return {each.name: result.as_numpy(each.name) for each in result.get_response().outputs}


def processor(checkpoint: Path) -> Any:
    return transformers.AutoImageProcessor.from_pretrained(checkpoint, backend="pil")


def shown(data: bytes) -> Image.Image:
    return transformers.image_utils.load_image(base64.b64encode(data).decode())


def test_labels_and_scores_are_those_of_transformers(serving: Server, checkpoints: dict[str, Path]) -> None:
    pipeline = transformers.pipeline(
        "image-classification", model=str(checkpoints["vit"]), image_processor=processor(checkpoints["vit"])
    )
    answer = ask(serving, "vit", *IMAGES, top_k=3)
    best = ask(serving, "vit", *IMAGES)
    for row, data in enumerate(IMAGES):
        expected = pipeline(shown(data), top_k=4)
        assert [label.decode() for label in answer["label"][row]] == [each["label"] for each in expected[:3]]
        assert answer["score"][row] == pytest.approx([each["score"] for each in expected[:3]], abs=1e-4)
        scores = dict(zip(NAMES, answer["scores"][row], strict=True))
        assert scores == pytest.approx({each["label"]: each["score"] for each in expected}, abs=1e-4)
        assert best["label"][row].tolist() == [expected[0]["label"].encode()]
    assert len(set(answer["label"][:, 0])) > 1, "too dull"


def test_convolutions_in_int8_answer_as_the_local_engine(serving: Server, int8: Path) -> None:
    """Alone and in one request: sums of codes are exact, so that company changes no bit of the logits."""
    engine = TensorEngine.load(int8, threads=1)
    assert engine.spec.images is not None
    products = [node.op_type for node in onnx.load(int8 / "engine.onnx", load_external_data=False).graph.node]
    assert {"QLinearConv", "ConvInteger"} & set(products)
    assert "Conv" not in products
    prepare = Preprocessor(engine.spec.images.preprocessing)
    values = np.concatenate([prepare(image).values[None] for image in IMAGES])
    wanted = [engine.run({"pixel_values": row[None]})["logits"][0] for row in values]
    with grpcclient.InferenceServerClient(serving.grpc) as client:
        together = client.infer("resnet_int8_tensors", [tensor("pixel_values", values)]).as_numpy("logits")
    assert np.array_equal(together, np.stack(wanted))
    powers = np.exp(together - together.max(-1, keepdims=True))
    scores = powers / powers.sum(-1, keepdims=True)
    answer = ask(serving, "resnet_int8", *IMAGES)
    np.testing.assert_allclose(answer["scores"], scores, rtol=1e-6)
    assert answer["label"][:, 0].tolist() == [NAMES[place].encode() for place in together.argmax(-1)]
    assert len(np.unique(together, axis=0)) > 1, "too dull"


@torch.no_grad()
def test_objects_are_those_of_transformers(serving: Server, checkpoints: dict[str, Path]) -> None:
    """Images of several sizes in one request: each is as if it were alone."""
    model = transformers.AutoModelForObjectDetection.from_pretrained(checkpoints["detr"]).eval()
    prepare = processor(checkpoints["detr"])
    answer = ask(serving, "detr", *IMAGES, threshold=0.3)
    counts = []
    for row, data in enumerate(IMAGES):
        picture = shown(data)
        (expected,) = prepare.post_process_object_detection(
            model(**prepare(images=[picture], return_tensors="pt")),
            threshold=0.3,
            target_sizes=[(picture.height, picture.width)],
        )
        count = len(expected["scores"])
        assert answer["num_objects"][row].tolist() == [count]
        names = [NAMES[place].encode() for place in expected["labels"].tolist()]
        assert answer["labels"][row, :count].tolist() == names
        np.testing.assert_allclose(answer["boxes"][row, :count], expected["boxes"].numpy(), atol=0.02)
        np.testing.assert_allclose(answer["scores"][row, :count], expected["scores"].numpy(), atol=1e-4)
        assert np.isnan(answer["boxes"][row, count:]).all()
        assert set(answer["labels"][row, count:]) <= {b""}
        counts.append(count)
    assert max(counts) > 0, "too dull"
    none = ask(serving, "detr", *IMAGES[:2], threshold=0.999)
    assert none["num_objects"].tolist() == [[0], [0]]
    assert none["boxes"].shape == (2, 0, 4)


@torch.no_grad()
def test_embeddings_are_those_of_transformers(serving: Server, checkpoints: dict[str, Path]) -> None:
    model = transformers.CLIPVisionModelWithProjection.from_pretrained(checkpoints["clip"]).eval()
    pixels = processor(checkpoints["clip"])(images=[shown(data) for data in IMAGES], return_tensors="pt")
    expected = model(**pixels).image_embeds.numpy()
    np.testing.assert_allclose(ask(serving, "clip", *IMAGES)["embedding"], expected, rtol=1e-4, atol=1e-4)


def test_requests_that_arrive_together_keep_their_own_answers(serving: Server) -> None:
    """Of one image and of several, of all sizes, and with bad ones in between."""
    requests = [IMAGES[start : start + 1 + start % 3] for start in range(6)] * 4
    requests[5] = requests[13] = (IMAGES[0], b"no image")
    for model, output in (("vit", "scores"), ("detr", "num_objects")):
        alone = [ask(serving, model, image)[output][0] for image in IMAGES]
        rows = metric(serving, "slipway_rows_total", model=f"{model}_tensors")
        answers: dict[int, Any] = {}
        with grpcclient.InferenceServerClient(serving.grpc) as client:
            for place, images in enumerate(requests):
                client.async_infer(
                    model,
                    [image_input(*images)],
                    lambda result, error, place=place, seen=answers: seen.update({place: error or result}),
                )
            until(lambda seen=answers: len(seen) == len(requests), "all are answered")  # type: ignore[misc]
        for place, images in enumerate(requests):
            if b"no image" in images:
                assert "image 2 of 2: the image (8 bytes) is in no known format" in str(answers[place])
                continue
            expected = [alone[IMAGES.index(image)] for image in images]
            np.testing.assert_allclose(answers[place].as_numpy(output), np.stack(expected), atol=1e-5)
        good = sum(len(images) for images in requests if b"no image" not in images)
        total = rows + good
        until(
            lambda model=model, total=total: (  # type: ignore[misc]
                metric(serving, "slipway_rows_total", model=f"{model}_tensors") == total
            ),
            "all rows are counted",
        )


def test_equal_sizes_of_a_request_are_computed_together(serving: Server) -> None:
    for model in ("vit_tensors", "detr_tensors"):
        steps, rows = (metric(serving, f"slipway_{kind}_total", model=model) for kind in ("steps", "rows"))
        ask(serving, model.removesuffix("_tensors"), IMAGES[0], IMAGES[0])
        until(
            lambda model=model, rows=rows: metric(serving, "slipway_rows_total", model=model) == rows + 2,  # type: ignore[misc]
            "both rows are counted",
        )
        assert metric(serving, "slipway_steps_total", model=model) == steps + 1


BAD = {
    "nothing": (b"", {}, "in no known format"),
    "text": (b"a ship", {}, "in no known format; send one of JPEG"),
    "half": (IMAGES[0][: len(IMAGES[0]) // 2], {}, "the image is damaged: image file is truncated"),
    "no place to stand on": (IMAGES[0], {"top_k": 0}, "top_k is 0; the model has 4 labels"),
    "more labels than there are": (IMAGES[0], {"top_k": 5}, "give 1 to 4"),
}


@pytest.mark.parametrize(("image", "settings", "message"), BAD.values(), ids=BAD.keys())
def test_a_bad_request_is_one_clear_error(
    serving: Server, image: bytes, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InferenceServerException, match=message) as caught:
        ask(serving, "vit", image, **settings)
    assert "INVALID_ARGUMENT" in str(caught.value)
    assert ask(serving, "vit", IMAGES[0])["label"].shape == (1, 1)


def test_settings_are_one_for_a_request(serving: Server) -> None:
    inputs = [image_input(*IMAGES[:2]), tensor("top_k", np.array([[1], [2]], np.int32))]
    with (
        grpcclient.InferenceServerClient(serving.grpc) as client,
        pytest.raises(InferenceServerException, match="give all its images the same value"),
    ):
        client.infer("vit", inputs)
    with pytest.raises(InferenceServerException, match="scores are between 0 and 1"):
        ask(serving, "detr", IMAGES[0], threshold=1.5)
    narrow = io.BytesIO()
    Image.new("RGB", (200, 10)).save(narrow, "PNG")
    with pytest.raises(InferenceServerException, match="height is 5; it must be at least 33 and at most 96"):
        ask(serving, "detr", narrow.getvalue())


def test_the_engine_takes_pixels_itself(serving: Server, repository: Path) -> None:
    for model, images in (("vit", IMAGES[:2]), ("detr", IMAGES[:1])):
        spec = Manifest.read(repository / f"{model}_tensors" / "1" / "engine" / "engine.json").engine
        assert spec is not None
        assert spec.images is not None
        prepare = Preprocessor(spec.images.preprocessing)
        values = np.stack([prepare(image).values for image in images])
        with grpcclient.InferenceServerClient(serving.grpc) as client:
            result = client.infer(f"{model}_tensors", [tensor("pixel_values", values)])
        logits = result.as_numpy("logits")
        powers = np.exp(logits - logits.max(-1, keepdims=True))
        scores = powers / powers.sum(-1, keepdims=True)
        if model == "vit":
            np.testing.assert_allclose(ask(serving, "vit", *images)["scores"], scores, atol=1e-5)
        else:
            found = int((scores[0, :, :-1].max(-1) > 0.3).sum())
            assert ask(serving, "detr", *images, threshold=0.3)["num_objects"].tolist() == [[found]]


def test_a_size_beyond_the_pixels_is_refused(serving: Server) -> None:
    inputs = [
        tensor("pixel_values", np.zeros((1, 3, 64, 64), np.float32)),
        tensor("image_size", np.array([[64, 65]], np.int32)),
    ]
    with (
        grpcclient.InferenceServerClient(serving.grpc) as client,
        pytest.raises(
            InferenceServerException, match=r"image_size says 64 x 65 .*; pixel_values have 64 x 64"
        ),
    ):
        client.infer("detr_tensors", inputs)


def test_the_best_labels_can_be_asked_for_by_name(serving: Server) -> None:
    """Triton's own classification extension, through the ensemble."""
    with grpcclient.InferenceServerClient(serving.grpc) as client:
        best = grpcclient.InferRequestedOutput("scores", class_count=2)
        (found,) = client.infer("vit", [image_input(IMAGES[0])], outputs=[best]).as_numpy("scores")
    scores = ask(serving, "vit", IMAGES[0])["scores"][0]
    assert [line.decode().split(":")[2] for line in found] == [
        NAMES[place] for place in scores.argsort()[:-3:-1]
    ]


def test_the_example_in_the_docs_runs(serving: Server, tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", DOCS, flags=re.DOTALL)
    python, curl = re.findall(r"```console\n(.*?)```", DOCS, flags=re.DOTALL)
    (tmp_path / "classify.py").write_text(code)
    (tmp_path / "gull.jpg").write_bytes(SHOWN["a wide JPEG"])
    (tmp_path / "ship.png").write_bytes(SHOWN["a high PNG"])
    command = shlex.split(python.replace("localhost:8001", serving.grpc))
    assert command[0] == "python"
    result = subprocess.run(
        [sys.executable, *command[1:]], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    expected = ask(serving, "vit", SHOWN["a wide JPEG"], SHOWN["a high PNG"], top_k=2)
    lines = [
        " ".join(f"{label.decode()} {score:.3f}" for label, score in zip(labels, scores, strict=True))
        for labels, scores in zip(expected["label"], expected["score"], strict=True)
    ]
    assert result.stdout.splitlines() == [f"gull.jpg {lines[0]}", f"ship.png {lines[1]}"]
    told = subprocess.run(
        curl.replace("localhost:8000", serving.http),
        shell=True,
        cwd=tmp_path,
        capture_output=True,
        check=True,
    )
    assert json.loads(told.stdout)["label"] == expected["label"][1, 0].decode()


def test_what_a_user_is_told_runs(serving: Server, repository: Path, tmp_path: Path) -> None:
    models = served_models(repository)
    assert models == dict.fromkeys((*MODELS, "resnet_int8"), "images")
    told = how_to_call(serving, models, repository)
    (tmp_path / "picture.jpg").write_bytes(SHOWN["a wide JPEG"])
    curl, snippet = told.split("vit, with curl:")[1].split("vit, with tritonclient:")
    answer = subprocess.run(curl, shell=True, cwd=tmp_path, capture_output=True, check=True).stdout
    label = ask(serving, "vit", SHOWN["a wide JPEG"])["label"][0, 0]
    assert json.loads(answer)["label"] == label.decode()
    result = subprocess.run(
        [sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    assert repr(label) in result.stdout
    for output in ("label", "scores", "num_objects", "boxes", "embedding"):
        assert f'print(result.as_numpy("{output}"))' in told
