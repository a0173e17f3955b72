"""Builds for the emulator: what is compiled, how often, and what is shared."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from model_repo.runtime.errors import SlipwayError
from plugins.cuda.case import Case
from plugins.cuda.emulated import Build, run
from plugins.cuda.units import CORE
from tests.plugins.cuda.conftest import toy_sources

COMPILER = """#!/bin/sh
case "$1" in --version|-dumpmachine) echo slow; exit;; esac
for made; do :; done
basename "$made" >> LOG
sleep 0.3
touch "$made"
"""


@pytest.fixture(name="folder")
def toy_folder(tmp_path: Path) -> Path:
    """Sources with the toy as the only operator."""
    (tmp_path / "toy").mkdir()
    return toy_sources(tmp_path / "toy")


@pytest.fixture(name="log")
def slow_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that is slow and writes down what it makes."""
    log, program = tmp_path / "log", tmp_path / "c++"
    program.write_text(COMPILER.replace("LOG", str(log)))
    program.chmod(0o755)
    monkeypatch.setenv("CXX", str(program))
    return log


def made(log: Path) -> list[str]:
    """What was compiled or linked since the last call, without hashes."""
    lines = log.read_text().split() if log.exists() else []
    log.unlink(missing_ok=True)
    return sorted(
        line.rpartition("-")[0] if line.endswith(".o") else line.rpartition("-")[2] for line in lines
    )


def test_who_needs_the_same_object_waits_for_it(folder: Path, log: Path, tmp_path: Path) -> None:
    build = Build("tsan", ("toy",), folder, cache=tmp_path / "cache")
    with ThreadPoolExecutor(3) as pool:
        runners = [future.result() for future in [pool.submit(build.runner) for _ in range(3)]]
    assert len(set(runners)) == 1
    objects = [*(name.partition(".")[0] for name in CORE), "toy", "runner"]
    assert Counter(made(log)) == Counter([*objects, "runner"])  # the program has the name of an object
    build.runner()
    assert made(log) == []


def test_macros_are_given_to_the_units_that_mention_them(folder: Path, log: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    plain = Build("plain", ("toy",), folder, cache=cache).runner()
    made(log)
    assert Build("plain", ("toy",), folder, ("SLIPWAY_ARCH_90A",), cache).runner() == plain
    assert made(log) == []
    assert Build("plain", ("toy",), folder, ("SLIPWAY_MAX_HEAD_SIZE=64",), cache).runner() != plain
    assert made(log) == ["runner", "toy"]


def test_an_operator_that_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(SlipwayError, match="does not describe 'tool'"):
        run([Case("any", "tool", {}, {})], Build(operators=("toy",), folder=folder))
