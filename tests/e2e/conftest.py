"""One real tritonserver for all end-to-end tests, with the demo model and MiniLM."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from model_repo.emit import emit
from model_repo.runtime.manifest import FileRecord, Manifest
from pipeline import Recipe, build
from pipeline.recipe import ServeRecipe
from pipeline.serve import Server, server
from tests.e2e import heads

CHAT_TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
MAX_QUEUE = 16
MODULES = {name: f"tests.pipeline.user_models:{name}" for name in ("scorer", "centered")}
"""Served name -> function; models of named tensors."""
QUANTIZED: dict[str, dict[str, str]] = {
    "demo_int8": {"precision": "int8"},
    "demo_int4": {"precision": "int4"},
    "demo_w4a8": {"precision": "w4a8", "kv_dtype": "int8"},
}
"""Served name -> how the demo model is quantized."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder starts a real server."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Served name -> checkpoint of a tiny encoder with a head."""
    return heads.checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="session")
def builds(tmp_path_factory: pytest.TempPathFactory, checkpoints: dict[str, Path]) -> dict[str, Path]:
    """Compiled engines of `minilm`, `demo` (with a chat template), QUANTIZED, MODULES and `checkpoints`: folders."""
    root = tmp_path_factory.mktemp("builds")
    stages = ("export", "fuse", "lower", "compile")
    models = (
        {"demo": "demo", "minilm": "minilm"} | MODULES | {n: str(path) for n, path in checkpoints.items()}
    )
    folders = {
        name: build(Recipe.for_model(model), root / name, stages=stages).folder
        for name, model in models.items()
    }
    for name, quantize in QUANTIZED.items():
        folders[name] = root / name
        shutil.copytree(folders["demo"], folders[name])
        recipe = Recipe.from_dict(
            {"source": {"model": "demo"}, "quantize": quantize, "calibrate": {"samples": 16}}
        )
        calibrated = ("calibrate",) if "kv_dtype" in quantize else ()
        build(recipe, folders[name], stages=(*calibrated, "quantize", "lower", "compile"))
    template = folders["demo"] / "chat_template.jinja"
    template.write_text(CHAT_TEMPLATE)
    manifest = Manifest.read(folders["demo"] / "engine.json")
    outputs = (*manifest.outputs, FileRecord.of(template, folders["demo"]))
    dataclasses.replace(manifest, outputs=outputs).write(folders["demo"] / "engine.json")
    return folders


@pytest.fixture(scope="session")
def captures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server keeps its requests, a file a model."""
    return tmp_path_factory.mktemp("captures") / "requests"


@pytest.fixture(scope="session")
def repository(builds: dict[str, Path], captures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model repository with all of them."""
    emitted = tmp_path_factory.mktemp("shared") / "repository"
    emit(list(builds.items()), emitted, ServeRecipe(max_queue=MAX_QUEUE, capture_folder=str(captures)))
    return emitted


@pytest.fixture(scope="session")
def running(repository: Path) -> Iterator[Server]:
    """The server that all tests share; each test leaves it idle."""
    with server(repository, drain_seconds=5) as started:
        yield started


@pytest.fixture
def idle(running: Server) -> Iterator[Server]:
    """The shared server; after the test it must become idle again: nothing runs, no block is taken."""
    yield running
    until(lambda: metric(running, "slipway_running", model="demo") == 0, "no request runs any more")
    until(lambda: metric(running, "slipway_in_flight", model="demo") == 0, "all requests are answered")
    until(lambda: metric(running, "slipway_waiting", model="demo") == 0, "no request waits any more")
    until(lambda: metric(running, "slipway_kv_blocks_used", model="demo") == 0, "all blocks are free")


def until(condition: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    """Polls until `condition` holds; fails with `what` when it does not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds:g} s: {what}")
        time.sleep(0.02)


def metric(running: Server, name: str, **labels: str) -> float:
    """One value of the metrics port. Fails when there is none with these labels."""
    for line in running.metrics().splitlines():
        match = re.fullmatch(r"(\w+)\{(.*)\} (\S+)", line)
        if (
            match
            and match[1] == name
            and labels.items() <= dict(re.findall(r'(\w+)="([^"]*)"', match[2])).items()
        ):
            return float(match[3])
    pytest.fail(f"no metric {name} with {labels}")


def post(running: Server, path: str, body: dict[str, Any]) -> tuple[int, str]:
    """Sends JSON to the HTTP interface; gives status and text."""
    request = urllib.request.Request(f"{running.url}/v2/models/{path}", json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
