"""The examples of docs/sources.md, run as they are printed."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from model_repo.runtime.tensors import TensorEngine
from pipeline.sources import FILES, SOURCES

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "sources.md").read_text(encoding="utf-8")
MODELS, PROGRAM, GRAPH = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
COMMANDS = [
    line
    for block in re.findall(r"```console\n(.*?)```", TEXT, flags=re.DOTALL)
    for line in block.splitlines()
]


def run(folder: Path, *command: str) -> None:
    result = subprocess.run(
        [sys.executable, *command], cwd=folder, capture_output=True, text=True, timeout=900, check=False
    )
    assert result.returncode == 0, result.stderr


def test_the_examples_work(tmp_path: Path) -> None:
    (tmp_path / "models.py").write_text(MODELS, encoding="utf-8")
    run(tmp_path, "-c", PROGRAM)
    run(tmp_path, "-c", GRAPH)
    for line in COMMANDS:
        program, *arguments = shlex.split(line)
        assert program == "slipway"
        run(tmp_path, "-c", "from pipeline.cli import main; main()", *arguments)
    assert {path.name for path in (tmp_path / "build").iterdir()} == {"classifier", "program", "graph"}
    engine = TensorEngine.load(tmp_path / "build" / "classifier", threads=1)
    assert engine.spec.batched
    images = np.random.default_rng(0).random((3, 3, 40, 72), dtype=np.float32)
    namespace: dict[str, object] = {"__name__": "models"}
    exec(MODELS, namespace)
    module = namespace["classifier"]().module.eval()  # type: ignore[operator]
    with torch.no_grad():
        expected = module(torch.from_numpy(images))
    found = engine.run({"image": images})
    np.testing.assert_allclose(found["logits"], expected["logits"].numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found["best"], expected["best"].numpy())


def test_the_table_names_every_source() -> None:
    for name in (*SOURCES, *FILES):
        assert f"{name}`" in TEXT, name
