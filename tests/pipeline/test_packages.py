"""Packages: versions, words for missing ones, and what `from pipeline import ...` gives."""

from __future__ import annotations

import importlib
import tomllib
from pathlib import Path

import pytest

import pipeline
from model_repo.runtime.errors import BadInput
from pipeline.builder import build
from pipeline.packages import DISTRIBUTIONS, missing_packages, version, versions
from pipeline.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]


def test_versions_are_those_of_the_imported_packages() -> None:
    import numpy as np
    import onnx

    assert versions(["onnx", "numpy"]) == {"numpy": np.__version__, "onnx": onnx.__version__}
    assert version("no-such-distribution") == "absent"


@pytest.mark.parametrize(
    ("package", "install"), [("torch", "torch"), ("onnxruntime.capi", "onnxruntime"), ("yaml", "pyyaml")]
)
def test_a_missing_package_says_what_to_install(package: str, install: str) -> None:
    with pytest.raises(BadInput, match=rf"missing or broken .*`pip install {install}`"), missing_packages():
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)


def test_other_import_errors_are_faults_of_ours() -> None:
    with pytest.raises(ImportError, match="typo"), missing_packages():
        importlib.import_module("pipeline.typo")


def test_every_dependency_of_the_project_is_known() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {line.split("==")[0].split(">=")[0].split("[")[0].strip() for line in project["dependencies"]}
    assert named <= set(DISTRIBUTIONS.values())


def test_the_package_gives_build_and_recipe() -> None:
    assert pipeline.build is build
    assert pipeline.Recipe is Recipe
    with pytest.raises(
        AttributeError, match="no attribute 'bild'; it has BuildResult, ModuleExample, Recipe, build"
    ):
        pipeline.bild  # noqa: B018
