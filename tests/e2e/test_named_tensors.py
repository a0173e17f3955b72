"""Models of named tensors through the server: torch's numbers, requests joined where rows stand alone, bad input."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from pipeline.client import tensor
from pipeline.foreground import how_to_call, served_models
from pipeline.serve import Server
from tests.e2e.conftest import metric, until
from tests.pipeline import user_models


def given(rows: int) -> dict[str, Any]:
    random = np.random.default_rng(rows)
    features = random.standard_normal((rows, 6), dtype=np.float32)
    return {"features": features, "kind": random.integers(0, 10, (rows, 1))}


def ask(running: Server, model: str, inputs: dict[str, Any]) -> Any:
    with grpcclient.InferenceServerClient(running.grpc) as client:
        return client.infer(model, [tensor(name, array) for name, array in inputs.items()])


def expected(inputs: dict[str, Any]) -> dict[str, Any]:
    """What torch gives; `best` is one number a row, which Triton serves as [1]."""
    with torch.no_grad():
        found = user_models.scorer().module(
            torch.from_numpy(inputs["features"]), torch.from_numpy(inputs["kind"][:, 0])
        )
    return {**{name: value.numpy() for name, value in found.items()}, "best": found["best"].numpy()[:, None]}


def test_answers_are_torchs(running: Server) -> None:
    for rows in (1, 4, 32):
        answer = ask(running, "scorer", given(rows))
        for name, array in expected(given(rows)).items():
            found = answer.as_numpy(name)
            assert (found.dtype, found.shape) == (array.dtype, array.shape)
            np.testing.assert_allclose(found, array, rtol=1e-5, atol=1e-6)


def test_requests_that_arrive_together_are_joined(running: Server) -> None:
    """Many at once: fewer steps than requests, and everybody gets the answer to their own."""
    before = {
        name: metric(running, name, model="scorer") for name in ("slipway_steps_total", "slipway_rows_total")
    }
    answers: list[Any] = []
    lock = threading.Lock()

    def received(rows: int, result: Any, error: Any) -> None:
        with lock:
            answers.append((rows, error or result))

    with grpcclient.InferenceServerClient(running.grpc) as client:
        sizes = [1 + number % 5 for number in range(60)]
        for rows in sizes:
            inputs = [tensor(name, array) for name, array in given(rows).items()]
            client.async_infer(
                "scorer", inputs, lambda result, error, rows=rows: received(rows, result, error)
            )
        until(lambda: len(answers) == len(sizes), "all are answered")
    for rows, answer in answers:
        np.testing.assert_allclose(
            answer.as_numpy("scores"), expected(given(rows))["scores"], rtol=1e-5, atol=1e-6
        )
    total = before["slipway_rows_total"] + sum(sizes)
    until(lambda: metric(running, "slipway_rows_total", model="scorer") == total, "all rows are counted")
    assert metric(running, "slipway_steps_total", model="scorer") - before["slipway_steps_total"] < len(sizes)


def test_rows_that_depend_on_each_other_come_as_they_were_sent(running: Server) -> None:
    points = np.random.default_rng(0).standard_normal((9, 3), dtype=np.float32)
    found = ask(running, "centered", {"points": points}).as_numpy("output")
    np.testing.assert_allclose(found, points - points.mean(axis=0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({**given(2), "kind": np.array([[1], [10]])}, "does not take these inputs"),
        ({"features": given(2)["features"]}, "kind"),
        ({**given(2), "kind": given(2)["kind"].astype(np.int32)}, "kind"),
        ({**given(2), "features": given(2)["features"][:, :5]}, "features"),
        (given(33), "32"),
    ],
    ids=["a value out of range", "an input missing", "another type", "another width", "more than the limit"],
)
def test_bad_input_is_an_error_for_its_sender(running: Server, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(InferenceServerException, match=message):
        ask(running, "scorer", inputs)
    assert ask(running, "scorer", given(1)).as_numpy("best").shape == (1, 1)


def test_the_snippet_that_serve_prints_runs(running: Server, builds: dict[str, Path], tmp_path: Path) -> None:
    from model_repo.emit import emit
    from pipeline.recipe import ServeRecipe

    emit([("scorer", builds["scorer"]), ("minilm", builds["minilm"])], tmp_path / "repository", ServeRecipe())
    models = served_models(tmp_path / "repository")
    assert models == {"minilm": "encoder", "scorer": "tensors"}
    told = how_to_call(running, {"scorer": "tensors"}, tmp_path / "repository")
    code = told[told.index("import numpy") :]
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n")[:3] == ["scores (3, 4)", "best (3, 1)", "likely (3, 4)"]
