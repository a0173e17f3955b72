"""The stage calibrate: what it leaves, when it runs again, what it refuses, and what a kill leaves."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from calibration.samples.kept import read_samples
from calibration.scales import Scales
from model_repo.runtime.errors import BadInput
from model_repo.runtime.manifest import Manifest, sha256_of
from pipeline import build
from pipeline.builder import stages_of
from pipeline.check import check, verdict
from pipeline.cli import main
from pipeline.quantize.policy import POLICIES
from pipeline.recipe import CalibrateRecipe, QuantizeRecipe, Recipe
from pipeline.workspace import ALL_MANIFESTS, FUSED, QUANTIZED, RECIPE, SCALES, STAGING
from tests.pipeline.tiny import MAX_LENGTH

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twenty lines of text, each another."""
    path = tmp_path / "data.jsonl"
    lines = [
        json.dumps({"text": f"{n} words and {n * n} more, to be counted {n}", "domain": "x"})
        for n in range(20)
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def recipe_of(folder: Path, **calibrate: object) -> Recipe:
    data = Recipe.load(folder / RECIPE).to_dict()
    data["calibrate"].update(calibrate)
    return Recipe.from_dict(data)


def test_the_stage_leaves_ranges_samples_and_a_manifest(built: Path, data: Path) -> None:
    recipe = recipe_of(built, data=str(data), method="entropy", samples=12)
    (row,) = build(recipe, built, stages=("calibrate",)).rows
    assert row.ran
    scales = Scales.read(built / SCALES, sha256_of(built / FUSED))
    assert (scales.method, scales.samples) == ("entropy", 12)
    # Two layers: what each projection reads, the head's rows, and the pools of one head.
    assert len([name for name in scales.tensors if "cache" not in name]) == 2 * 4 + 1
    assert {name for name, tensor in scales.tensors.items() if tensor.axis is not None} == {
        f"{kind}_cache_{layer}" for kind in ("key", "value") for layer in (0, 1)
    }
    assert all(tensor.high[0] > 0 for tensor in scales.tensors.values())
    samples = read_samples(built)
    assert len(samples) == 12
    assert max(map(len, samples)) <= MAX_LENGTH
    manifest = Manifest.read(built / ALL_MANIFESTS["calibrate"])
    assert manifest.details["data"]["sha256"] == scales.data_sha256
    assert manifest.details["data"]["domains"] == {"x": 12}
    assert manifest.command == (
        "slipway",
        "calibrate",
        str(built),
        "--method",
        "entropy",
        "--data",
        str(data),
        "--samples",
        "12",
    )
    verdict(check(built))


@pytest.mark.parametrize("algorithm", ["awq", "smoothquant"])
def test_no_factors_move_into_activations_whose_ranges_are_fixed(
    built: Path, data: Path, algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(POLICIES, "onnxruntime", replace(POLICIES["onnxruntime"], smallest=1))
    recipe = recipe_of(built, data=str(data))
    recipe = replace(recipe, quantize=QuantizeRecipe("fp8", algorithm=algorithm))
    with pytest.raises(BadInput, match=f"'{algorithm}', which moves factors into activations"):
        build(recipe, built, stages=("calibrate", "quantize"))
    assert not (built / QUANTIZED).exists()


def test_it_runs_again_when_its_data_changes_and_only_then(built: Path, data: Path) -> None:
    recipe = recipe_of(built, data=str(data))
    assert build(recipe, built, stages=("calibrate",)).rows[0].ran
    before = (built / SCALES).read_bytes()
    assert not build(recipe, built, stages=("calibrate",)).rows[0].ran
    data.write_text(data.read_text() + '\n{"text": "one more line that was not there before"}')
    assert build(recipe, built, stages=("calibrate",)).rows[0].ran
    assert (built / SCALES).read_bytes() != before


def test_kept_samples_give_the_same_ranges(built: Path, data: Path) -> None:
    build(recipe_of(built, data=str(data)), built, stages=("calibrate",))
    once = Scales.read(built / SCALES)
    again = built.parent / "again.jsonl"
    again.write_bytes((built / "calibration.jsonl").read_bytes())
    build(recipe_of(built, data=str(again)), built, stages=("calibrate",))
    assert Scales.read(built / SCALES) == once


def test_float32_needs_no_ranges_and_a_whole_build_removes_old_ones(
    built: Path, data: Path, tiny_llama: Path
) -> None:
    assert "calibrate" not in stages_of(Recipe.for_model(str(tiny_llama)))
    build(recipe_of(built, data=str(data)), built, stages=("calibrate",))
    assert (built / SCALES).exists()
    rows = build(recipe_of(built), built).rows
    assert [row.stage for row in rows if row.ran] == []
    assert not (built / SCALES).exists()
    assert not (built / ALL_MANIFESTS["calibrate"]).exists()
    verdict(check(built))


def test_bad_data_is_refused_and_leaves_nothing(built: Path, data: Path) -> None:
    before = {path.name for path in built.iterdir()}
    for changes, message in (
        ({"data": str(built / "none.jsonl")}, "no calibration data at"),
        ({"data": str(data), "samples": 21}, "gives 20 different samples, and 21 are asked for"),
        ({"data": str(built / SCALES)}, "no calibration data at"),
        ({"data": str(built / "engine.onnx")}, "is of no use to a model of texts"),
    ):
        with pytest.raises(BadInput, match=message):
            build(recipe_of(built, **changes), built, stages=("calibrate",))
    assert {path.name for path in built.iterdir()} <= before | {"recipe.yaml"}
    with pytest.raises(BadInput, match=r"calibrate\.method is 'kl'; available"):
        CalibrateRecipe(method="kl")


KILLED = """
import os, signal, sys
import calibration.ranges as ranges
from pipeline.cli import main
observe = ranges.observe
def dies(*arguments, advanced, **more):
    def kill(done, total):
        advanced(done, total)
        if done == 2:
            os.kill(os.getpid(), signal.SIGKILL)
    return observe(*arguments, advanced=kill, **more)
ranges.observe = dies
main(sys.argv[1:])
"""


def test_a_kill_in_the_middle_leaves_nothing(built: Path, data: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in built.iterdir() if path.is_file()}
    lines = [json.dumps({"input_ids": [n % 120, *range(60)]}) for n in range(40)]
    data.write_text("\n".join(lines))
    command = [sys.executable, "-c", KILLED, "calibrate", str(built), "--data", str(data)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    left = {path.name: path.read_bytes() for path in built.iterdir() if path.is_file()}
    assert {name for name in left if name not in before} <= {"build.lock", ".build.lock", ".hashes.json"}
    assert {name for name in before if left.get(name) != before[name]} <= {".hashes.json"}
    (row,) = build(recipe_of(built, data=str(data)), built, stages=("calibrate",)).rows
    assert row.ran
    assert not list(built.glob(f"{STAGING}*"))


def test_the_command_calibrates_a_folder(built: Path, data: Path) -> None:
    command = [sys.executable, "-m", "pipeline.cli", "calibrate", str(built)]
    options = ["--method", "percentile", "--percentile", "99.9", "--data", str(data), "--samples", "10"]
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from pipeline.cli import main; main(sys.argv[1:])",
            *command[3:],
            *options,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "calibrate │ built" in done.stdout
    assert Scales.read(built / SCALES).method == "percentile"
    assert Recipe.load(built / RECIPE).calibrate.samples == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"high": [float("nan")]}, r"the range of '.*' is .* NaN and infinity are no ends"),
        ({"high": [float("inf")]}, r"the range of '.*' is .* NaN and infinity are no ends"),
        ({"low": [0.0], "high": [0.0]}, "was zero for all calibration data, so that no scale follows"),
        ({"low": [2.0], "high": [1.0]}, "low is above high"),
        (None, "was calibrated on another graph"),
    ],
)
def test_scales_that_cannot_be_used_are_refused_and_leave_nothing(
    built: Path,
    data: Path,
    change: dict[str, list[float]] | None,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(POLICIES, "onnxruntime", replace(POLICIES["onnxruntime"], smallest=1))
    build(recipe_of(built, data=str(data)), built, stages=("calibrate",))
    scales = json.loads((built / SCALES).read_text())
    if change is None:
        scales["graph_sha256"] = "0" * 64
    else:
        scales["tensors"][next(iter(scales["tensors"]))] |= change
    (built / SCALES).write_text(json.dumps(scales))
    before = {path.name: path.read_bytes() for path in built.iterdir() if path.is_file()}
    result = CliRunner().invoke(main, ["quantize", str(built), "--precision", "fp8"])
    assert result.exit_code == 2, result.output
    assert result.stderr.count("error: ") == 1
    assert re.search(message, result.stderr), result.stderr
    after = {path.name: path.read_bytes() for path in built.iterdir() if path.is_file()}
    assert {name for name in before | after if before.get(name) != after.get(name)} <= {
        ".hashes.json",
        RECIPE,
    }
