"""Room on the disk: known before, and a full or forbidden disk told in words, with nothing half-written."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from model_repo.runtime.errors import BadInput
from pipeline.builder import build
from pipeline.disk import FIXED_BYTES, float32_bytes, free_bytes, in_words, write_errors
from pipeline.recipe import Recipe
from pipeline.steps.context import BuildContext

from .fake_steps import Fakes

ROOT = Path(__file__).resolve().parents[2]


def test_too_little_room_is_found_before_the_build(checkpoint: Path, tmp_path: Path) -> None:
    fakes = Fakes()
    with pytest.raises(BadInput, match=r"needs about 4\.9 KiB, 100 B are free"):
        build(
            Recipe.for_model(str(checkpoint)),
            tmp_path / "model",
            steps=fakes.steps(),
            free=lambda folder: 100,
        )
    assert fakes.ran == []
    assert not (tmp_path / "model").exists()


def test_real_stages_ask_for_room_for_the_weights(tiny_llama: Path, tmp_path: Path) -> None:
    asked: list[Path] = []

    def free(folder: Path) -> int:
        asked.append(folder)
        return 5 * FIXED_BYTES  # all that is fixed, nothing for the weights

    with pytest.raises(BadInput, match="not enough disk space"):
        build(Recipe.for_model(str(tiny_llama)), tmp_path / "model", free=free)
    assert asked == [tmp_path / "model"]


def test_a_disk_that_fills_up_is_told_and_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    def fill(stage: str, context: BuildContext) -> None:
        if stage == "compile":
            (context.workspace.staged("engine.onnx")).write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(BadInput, match=r"the disk is full at .*needs about .*1000 B, .* are free"):
        build(Recipe.for_model(str(checkpoint)), tmp_path / "model", steps=Fakes(work=fill).steps())
    assert not list((tmp_path / "model").glob(".staging*"))
    assert not (tmp_path / "model" / "engine.json").exists()
    assert (tmp_path / "model" / "lower.json").exists()


def test_a_write_that_the_system_really_cuts_short(checkpoint: Path, tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from model_repo.runtime.errors import BadInput\n"
        "from tests.pipeline.fake_steps import main\n"
        "try:\n"
        "    main('build', *sys.argv[1:])\n"
        "except BadInput as error:\n"
        "    sys.exit(str(error))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, checkpoint, tmp_path / "model", tmp_path / "counter"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert "the disk is full" in result.stderr
    assert not (tmp_path / "model").exists()


def test_a_library_that_writes_by_itself(tmp_path: Path) -> None:
    with (
        pytest.raises(BadInput, match="the disk is full"),
        write_errors(tmp_path, 10, free_bytes),
    ):
        raise RuntimeError(f"Could not write engine: {os.strerror(errno.ENOSPC)}")


def test_an_output_that_cannot_be_a_folder(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    recipe = Recipe.for_model(str(checkpoint))
    with pytest.raises(BadInput, match="is a file; --output names the folder"):
        build(recipe, tmp_path / "file", steps=Fakes().steps())
    with pytest.raises(BadInput, match="cannot be a folder"):
        build(recipe, tmp_path / "file" / "model", steps=Fakes().steps())


def test_an_output_that_may_not_be_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.mkdir

    def refuse(self: Path, *arguments: object, **options: object) -> None:
        if self.name == "model":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        real(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(BadInput, match=r"model is not writable \(Permission denied\); give another --output"):
        build(Recipe.for_model(str(checkpoint)), tmp_path / "model", steps=Fakes().steps())


def test_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), write_errors(tmp_path, 0, free_bytes):
        (tmp_path / "none").read_bytes()
    elsewhere = OSError(errno.EACCES, "no", "/somewhere/else")
    with pytest.raises(OSError, match="somewhere"), write_errors(tmp_path, 0, free_bytes):
        raise elsewhere


def test_weights_are_counted_in_float32(tmp_path: Path) -> None:
    tensors = {"a": np.zeros((10, 30), np.float16), "b": np.zeros(7, np.float32), "c": np.zeros((), np.int8)}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert float32_bytes([tmp_path / "model.safetensors"]) == 4 * (300 + 7 + 1)
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:20])
    assert float32_bytes([tmp_path / "cut.safetensors"]) == 20
    (tmp_path / "config.json").write_bytes(b"{}")
    assert float32_bytes([tmp_path / "config.json"]) == 2


def test_bytes_in_words() -> None:
    assert [in_words(n) for n in (5, 1536, 3 * 2**20, 5 * 2**30)] == ["5 B", "1.5 KiB", "3.0 MiB", "5.00 GiB"]
    assert free_bytes(Path("/") / "none" / "at" / "all") > 0
