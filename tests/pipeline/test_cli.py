"""The command line: light to start, one message for an error, the exit codes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from model_repo.runtime.errors import BadInput, GateFailed, SlipwayError
from model_repo.runtime.manifest import Manifest
from pipeline.cli import COMMANDS, main
from pipeline.workspace import MANIFESTS

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "onnx", "onnx_ir", "transformers", "onnxruntime", "numpy", "rich", "yaml")


def run_python(script: str, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """A fresh Python process in the project's folder, with these environment variables besides its own."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    environment = {**os.environ, **variables}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["build", "--help"], ["generate", "--help"], ["--version"]]
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys\n"
        "from pipeline.cli import main\n"
        "try:\n"
        "    main(sys.argv[1:])\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0, end.code\n"
        f"print('heavy:', sorted(set({HEAVY}) & set(sys.modules)))\n"
    )
    result = run_python(script, *arguments)
    assert result.stdout.splitlines()[-1] == "heavy: []", result.stdout + result.stderr


def test_the_help_lists_every_command_and_each_has_help() -> None:
    listed = CliRunner().invoke(main, ["--help"]).output
    for name, words in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(words[:20])}", listed, re.MULTILINE), name
        result = CliRunner().invoke(main, [name, "--help"])
        assert result.exit_code == 0, result.output
        assert f"main {name}" in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["build", "nothing-of-this-name"], "unknown model 'nothing-of-this-name'; give demo, minilm"),
        (["build", "some/where/model"], "no folder at some/where/model"),
        (["build", "../up"], "no folder at ../up"),
        (["build"], "no MODEL given"),
        (["build", "demo", "--target", "openvino"], "target.name is 'openvino'; available .* onnxruntime"),
        (["build", "demo", "--precision", "int9"], "precision is 'int9'; available .* fp32"),
        (
            [
                "build",
                "demo",
                "--target",
                "tensorrt-rtx",
                "--precision",
                "fp8",
                "--compute-capability",
                "8.6",
            ],
            "compute capability 8.6 has no FP8, which 8.9 and newer have",
        ),
        (
            ["build", "demo", "--target", "tensorrt", "--precision", "int4-asymmetric"],
            "'int4-asymmetric': its DequantizeLinear takes no zero point",
        ),
        (["build", "demo", "--max-length", "0"], "max_length is 0; it must be at least 1"),
        (["build", "demo", "--recipe", "none.yaml"], "no recipe at none.yaml"),
        (["build", "demo", "--nonsense"], "No such option"),
        (["nonsense"], "No such command"),
        (["fuse", "none"], "none holds no recipe.yaml"),
        (["check", "none"], "none holds no build"),
        (["inspect", "none.onnx"], "no ONNX graph at none.onnx"),
        (["clean", "none"], "no folder none"),
        (["bench", "none"], "no manifest at none"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2, result.output
    assert re.search(words, result.stderr), result.stderr
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code"),
    [(BadInput("x"), 2), (GateFailed("x"), 3), (SlipwayError("x"), 1), (KeyboardInterrupt(), 130)],
)
def test_each_error_has_its_exit_code(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    @click.command()
    def failing() -> None:
        error.add_note("to repeat just this stage: slipway x")
        raise error

    monkeypatch.setattr(type(main), "get_command", lambda self, context, name: failing)
    result = CliRunner().invoke(main, ["build"])
    assert result.exit_code == code
    if code != 130:
        assert result.stderr == "error: x\nto repeat just this stage: slipway x\n"


def test_a_fault_of_ours_keeps_its_traceback_in_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    @click.command()
    def failing() -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(type(main), "get_command", lambda self, context, name: failing)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    result = CliRunner().invoke(main, ["build"])
    assert result.exit_code == 1
    assert "Traceback" not in result.stderr
    (log,) = tmp_path.glob("slipway-error-*.log")
    assert str(log) in result.stderr
    assert "ZeroDivisionError: planted" in log.read_text()


def test_a_missing_package_is_named_with_what_to_install(tiny_llama: Path, tmp_path: Path) -> None:
    missing = "raise ModuleNotFoundError(\"No module named 'transformers'\", name='transformers')\n"
    (tmp_path / "transformers.py").write_text(missing)
    script = (
        "import sys; from pipeline.cli import main; main(['build', sys.argv[1], '--output', sys.argv[2]])"
    )
    result = run_python(script, tiny_llama, tmp_path / "out" / "model", PYTHONPATH=str(tmp_path))
    assert result.returncode == 2, result.stderr
    assert "'transformers' is missing" in result.stderr
    assert "pip install" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_stage_run_by_the_command_that_its_manifest_names(built: Path) -> None:
    recorded = Manifest.read(built / MANIFESTS["fuse"]).command
    assert recorded[:2] == ("slipway", "fuse")
    result = run_python("from pipeline.cli import main; main()", "fuse", built)
    assert result.returncode == 0, result.stderr
    assert "fuse: unchanged" in result.stderr
    assert "unchanged" in result.stdout
    again = run_python(
        "from pipeline.cli import main; main()", "build", "--recipe", built / "recipe.yaml", "--output", built
    )
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines()[-1] == f"repository: {built / 'repository'}"
