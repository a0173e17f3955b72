"""Starting and stopping: what is not as emitted is refused in words; SIGTERM lets running requests finish."""

from __future__ import annotations

import json
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from model_repo.emit import emit
from model_repo.runtime.errors import BadInput
from pipeline.client import stream
from pipeline.recipe import ServeRecipe
from pipeline.serve import Server, ServerFailed, server
from tests.e2e.conftest import metric, until

LONG = {"text_input": "The old man", "max_tokens": 500, "temperature": 0.0, "ignore_eos": True}


@pytest.fixture(scope="module")
def demo_repository(builds: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lifecycle") / "repository"
    emit([("demo", builds["demo"])], path, ServeRecipe())
    return path


def test_changed_files_are_refused(demo_repository: Path, tmp_path: Path) -> None:
    copy = tmp_path / "repository"
    shutil.copytree(demo_repository, copy)
    weight = max((copy / "demo_generate/1/engine/weights").iterdir(), key=lambda path: path.stat().st_size)
    with weight.open("r+b") as file:
        file.seek(100)
        byte = file.read(1)
        file.seek(100)
        file.write(bytes([byte[0] ^ 1]))
    with (copy / "demo_postprocess/1/slipway_runtime/backends/wire.py").open("a") as file:
        file.write("# mine\n")
    with pytest.raises(ServerFailed) as failed, server(copy):
        pass
    assert f"{weight.name} has changed since it was built" in str(failed.value)
    assert "wire.py has changed since it was built" in str(failed.value)
    assert "build it again" in str(failed.value)


def test_sigterm_drains_running_streams(demo_repository: Path, tmp_path: Path) -> None:
    with server(demo_repository, log=tmp_path / "log") as running, ThreadPoolExecutor(2) as pool:
        told = [
            pool.submit(lambda: list(stream(running.grpc, "demo", request_id="drained", **LONG)))
            for _ in range(2)
        ]
        until(lambda: metric(running, "slipway_running", model="demo") == 2, "both streams run")
        os.kill(running.process.pid, signal.SIGTERM)
        for future in told:
            chunks = future.result(timeout=60)
            assert chunks[-1].finish_reason == "length"
            assert sum(chunk.num_output_tokens for chunk in chunks) == 500
        assert running.process.wait(60) == 0
    _check_log(tmp_path / "log")


def _check_log(log: Path) -> None:
    """One JSON line a request, with the id that the client gave it."""
    events = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    ended = [event for event in events if event["event"] == "request ended"]
    assert [event["request_id"].split("#")[0] for event in ended] == ["drained", "drained"]
    assert {(event["finish_reason"], event["completion_tokens"]) for event in ended} == {("length", 500)}


def test_metrics_are_there(running: Server) -> None:
    names = {line.split("{")[0] for line in running.metrics().splitlines() if line.startswith("slipway_")}
    wanted = {
        *("slipway_waiting", "slipway_running", "slipway_kv_blocks_used", "slipway_kv_blocks_total"),
        *("slipway_time_to_first_token_seconds_bucket", "slipway_time_per_output_token_seconds_bucket"),
        *("slipway_requests_total", "slipway_generated_tokens_total", "slipway_batch_size_bucket"),
    }
    assert wanted <= names


def test_repository_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="emit"), server(tmp_path / "nothing"):
        pass
