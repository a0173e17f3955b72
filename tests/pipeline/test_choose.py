"""The choice of a precision: by measured speed within a measured loss."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import pipeline.choose
from model_repo.runtime.errors import BadInput
from pipeline.bench import Rate
from pipeline.choose import Measured, allowed_loss, choose, pick
from pipeline.cli import main
from pipeline.recipe import QuantizeRecipe, Recipe


def measured(precision: str, loss: float, *rates: float) -> Measured:
    names = ("prefill of 512", "decode, 1 streams from 64", "decode, 16 streams from 64")
    made = tuple(Rate(name, rate, "tokens/s") for name, rate in zip(names, rates, strict=True))
    return Measured(QuantizeRecipe(precision=precision), loss, made)


ALL = [
    measured("fp32", 0.0, 100, 10, 50),
    measured("int8", 0.002, 300, 30, 150),
    measured("int4", 0.03, 120, 40, 90),
    measured("w4a8", 0.031, 250, 45, 140),
]


@pytest.mark.parametrize(
    ("loss", "workload", "wanted"),
    [
        (0.01, "streams", "int8"),
        (0.01, "one", "int8"),
        (0.05, "one", "w4a8"),
        (0.05, "prefill", "int8"),
        (0.001, "one", "fp32"),
    ],
)
def test_the_fastest_within_the_loss_is_taken(loss: float, workload: str, wanted: str) -> None:
    assert pick(ALL, loss, workload).quantize.precision == wanted


def test_nothing_within_the_loss_is_told_with_the_nearest() -> None:
    with pytest.raises(BadInput, match=r"at most 0.10% .* the least is int8 with \+0.20%"):
        pick(ALL[1:], 0.001, "one")


def test_the_recipe_says_what_may_be_lost() -> None:
    recipe = Recipe.for_model("demo")
    assert allowed_loss(recipe) == 0.01
    strict = Recipe.from_dict(recipe.to_dict() | {"accept": {"max_perplexity_increase": "0.3%"}})
    assert allowed_loss(strict) == pytest.approx(0.003)


def test_the_choice_goes_into_the_recipe_and_nothing_else_stays(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two real engines of the tiny model, built, evaluated and timed; the time of one is then said to be better."""
    real = pipeline.choose.bench
    seen = []

    def timed(folder: Path, spec, threads):  # type: ignore[no-untyped-def]
        rates = real(folder, spec, threads)
        assert all(rate.value > 0 for rate in rates)
        seen.append(spec.precision)
        return [Rate(rate.what, 2.0 if spec.precision == "int8" else 1.0, rate.unit) for rate in rates]

    monkeypatch.setattr(pipeline.choose, "bench", timed)
    before = sorted(path.name for path in built.iterdir())
    choice, every = choose(built, max_loss=1.0, precisions=("fp32", "int8"), tokens=200)
    assert seen == ["fp32", "int8"]
    assert choice.quantize.precision == "int8"
    assert [item.loss for item in every] == [
        pytest.approx(0, abs=1e-6)
    ] * 2  # its matrices are too small to pay
    assert Recipe.load(built / "recipe.yaml").quantize.precision == "int8"
    assert sorted(path.name for path in built.iterdir()) == before
    assert [path.name for path in built.parent.iterdir()] == [built.name]
    assert json.loads((built / "engine.json").read_text())["engine"]["precision"] == "fp32"


def test_a_folder_without_a_decoder_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["bench", str(tmp_path), "--choose"])
    assert result.exit_code == 2
    assert "no recipe at" in result.output
