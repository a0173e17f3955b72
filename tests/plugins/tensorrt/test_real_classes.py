"""Our Python against TensorRT 11's own classes: a wrong name, signature or enum fails here and not on a user's GPU."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.plugins.tensorrt import real_classes


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_bindings") is None,
    reason="tensorrt-cu13-bindings, which only tests need, is not installed",
)
def test_tensorrt_has_what_our_code_uses(kernels_path: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", real_classes.__name__, str(kernels_path), str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    *problems, last = said.stdout.splitlines()
    assert problems == []
    count = re.fullmatch(r"checked (\d+) names of TensorRT 11\.4\..*", last)
    assert count is not None
    assert int(count[1]) > 50


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed (extra rtx)"
)
def test_tensorrt_rtx_has_what_the_runtime_uses() -> None:
    command = [sys.executable, "-m", real_classes.__name__, "rtx"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    *problems, last = said.stdout.splitlines()
    assert problems == []
    assert re.fullmatch(r"checked \d+ names of TensorRT-RTX 1\..*", last)
