"""The tiny model and one real build of it, made once for all tests of this folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline import BuildResult, Recipe, build

from .fake_steps import write_checkpoint
from .tiny import write_tiny_llama


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder."""
    return write_tiny_llama(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="session")
def real_build(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> BuildResult:
    """All stages of the tiny model; not to be changed by a test."""
    return build(Recipe.for_model(str(tiny_llama)), tmp_path_factory.mktemp("build") / "tiny")


@pytest.fixture
def built(real_build: BuildResult, tmp_path: Path) -> Path:
    """A copy of the real build that a test may change."""
    folder = tmp_path / "built"
    shutil.copytree(real_build.folder, folder)
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint folder that opens as a source but holds one meaningless weight: for fake stages."""
    return write_checkpoint(tmp_path / "checkpoint")
