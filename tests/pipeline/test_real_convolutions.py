"""A convolution network trained on real images, in int8 through all stages: as right as in float32."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from click.testing import CliRunner

from model_repo.runtime.manifest import Manifest
from model_repo.runtime.tensors import TensorEngine
from pipeline.cli import main
from pipeline.evaluate import Given, evaluate
from pipeline.workspace import ENGINE, FUSED, MANIFESTS
from tests.pipeline import digits

MODEL = "my_digits:classifier"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: his module, its parameters, images to calibrate on and labelled ones held out."""
    folder = tmp_path_factory.mktemp("digits")
    shutil.copyfile(str(digits.__file__), folder / "my_digits.py")
    shutil.copyfile(Path(digits.__file__).with_name("digits.npz"), folder / "digits.npz")
    digits.train(folder / "digits.pt")
    images, labels = digits.digits()
    np.savez(folder / "images.npz", images=images[: digits.TRAINED])
    np.savez(folder / "heldout.npz", images=images[digits.TRAINED :], labels=labels[digits.TRAINED :])
    return folder


def build(folder: Path, output: str, *options: str) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = CliRunner().invoke(main, ["build", MODEL, "--output", output, *options])
    assert result.exit_code == 0, result.output
    return folder / output


@pytest.fixture(scope="module")
def built(folder: Path) -> Path:
    return build(folder, "int8", "--precision", "int8", "--data", "images.npz")


def operators(graph: Path) -> list[str]:
    return [node.op_type for node in ir.load(graph).graph]


def right(engine: TensorEngine) -> float:
    """Share of the held-out images that the engine has right, in batches of 32."""
    images, labels = (array[digits.TRAINED :] for array in digits.digits())
    logits = np.concatenate(
        [engine.run({"images": images[at : at + 32]})["output"] for at in range(0, len(images), 32)]
    )
    return float((logits.argmax(axis=1) == labels).mean())


def test_int8_is_right_as_often_as_torch_in_float32(folder: Path, built: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.chdir(folder)
        images, labels = (torch.from_numpy(array[digits.TRAINED :]) for array in digits.digits())
        wanted = float((digits.network()(images).argmax(dim=1) == labels).float().mean())
    assert wanted > 0.93
    assert abs(right(TensorEngine.load(built, threads=1)) - wanted) <= 0.003
    assert operators(built / FUSED).count("Conv") == 4
    found = operators(built / ENGINE)
    assert (found.count("Conv"), found.count("FusedConv")) == (0, 0)
    # The residual sum reads floating point, from two of them.
    assert (found.count("QLinearConv"), found.count("ConvInteger")) == (2, 2)


def test_an_image_has_the_same_bits_alone_and_in_company(built: Path) -> None:
    engine = TensorEngine.load(built, threads=1)
    images = digits.digits()[0][digits.TRAINED : digits.TRAINED + 9]
    together = engine.run({"images": images})["output"]
    for place in range(9):
        assert np.array_equal(engine.run({"images": images[place : place + 1]})["output"][0], together[place])


def test_evaluate_says_what_it_costs(folder: Path, built: Path) -> None:
    """The report has the very share that the engine has right, and bytes of graph and weights."""
    report = evaluate(built, given=Given(folder / "heldout.npz"))
    (figures,) = report["outputs"].values()
    assert figures["accuracy"] == right(TensorEngine.load(built, threads=1))
    assert abs(figures["accuracy"] - figures["reference_accuracy"]) <= 0.003
    assert figures["mean_cosine"] > 0.995


def test_convolutions_stay_in_floating_point_without_data(folder: Path, built: Path) -> None:
    """And it is said; the linear head is too small to pay."""
    shutil.copytree(built, folder / "plain")
    output = folder / "plain"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = CliRunner().invoke(main, ["build", MODEL, "--output", "plain", "--precision", "int8"])
    assert result.exit_code == 0, result.output
    assert "4 convolutions stay in floating point" in result.output
    assert "QLinearConv" not in operators(output / ENGINE)
    assert len(json.loads((output / "quantize.json").read_text())["details"]["kept"]) == 4


def test_correction_of_biases_that_nothing_shifts_is_refused(folder: Path, built: Path) -> None:
    shutil.copytree(built, folder / "refused")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        options = ["--output", "refused", "--precision", "int8", "--bias-correction"]
        result = CliRunner().invoke(main, ["build", MODEL, *options])
    assert result.exit_code != 0
    assert "no convolution is quantized (4 in the model)" in result.output


def test_equalized_and_corrected_it_is_as_right(folder: Path, built: Path) -> None:
    shutil.copytree(built, folder / "both")
    output = build(
        folder, "both", "--precision", "int8", "--data", "images.npz", "--equalize", "--bias-correction"
    )
    fused = {
        name: Manifest.read(place / MANIFESTS["fuse"]) for name, place in (("plain", built), ("both", output))
    }
    assert fused["plain"].details["equalized"] == 0
    # Weight and bias of the first and weight of the second, of two pairs.
    assert fused["both"].details["equalized"] == 6
    shares = [right(TensorEngine.load(place, threads=1)) for place in (built, output)]
    assert abs(shares[0] - shares[1]) <= 0.003
