"""What `make gpu-check` does around the kernels, with the emulated library in the place of a GPU."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from plugins.cuda import check, check_processes, results
from plugins.cuda.case import Case
from plugins.cuda.company import Company, differences
from plugins.cuda.execution import Execution
from plugins.cuda.guarded import GuardedBuffer, GuardedTensor
from plugins.cuda.library import Library
from plugins.toolchain import locked
from tests.plugins.cuda import toy_checks

TOY = "tests.plugins.cuda.toy_checks"
CPU = torch.device("cpu")


@pytest.fixture(name="execution")
def toy_execution(toy_library: Path) -> Execution:
    return Execution(Library(toy_library), CPU)


def run_check(toy_library: Path, folder: Path, *more: str, fault: str = "") -> tuple[int, str]:
    command = [sys.executable, "-m", "plugins.cuda.check", "--library", str(toy_library), "--device", "cpu"]
    command += [
        "--modules",
        TOY,
        "--no-bench",
        "--no-engines",
        "--no-sanitizer",
        "--output",
        str(folder),
        "--jobs",
        "1",
        *more,
    ]
    environment = {**os.environ, "TOY_FAULT": fault, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=check_processes.ROOT, env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_right_kernels_leave_a_result_that_can_be_read(toy_library: Path, tmp_path: Path) -> None:
    code, words = run_check(toy_library, tmp_path, "--commit", "abc123")
    assert code == 0, words
    (found,) = results.read_all(tmp_path)
    assert found.file_name == f"{found.date[:10]}-emulated-abc123.json"
    assert found.verdict == "right"
    assert found.right_operators() == {"toy"}
    assert [(entry["case"], entry["repetitions"]) for entry in found.checks] == [
        ("odd", 100),
        ("one row", 0),
        ("refused", 0),
        ("with a workspace", 100),
    ]
    assert all(error <= 1e-3 for entry in found.checks for error in entry["errors"].values())
    assert found.dropped == ("compute-sanitizer: not asked for",)
    assert "right: 4 cases" in words


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("result", "WRONG toy, wrong: output: relative error"),
        (
            "overrun",
            "WRONG toy, overrun: output: 6 guard bytes after the last byte overwritten, the nearest 1 away",
        ),
        ("end", "WRONG tests.plugins.cuda.toy_checks, after end: code 9"),
        ("company", "WRONG toy, one row: one row: output: "),
    ],
)
def test_what_is_wrong_is_reported(toy_library: Path, tmp_path: Path, fault: str, words: str) -> None:
    code, output = run_check(toy_library, tmp_path, fault=fault)
    assert code == 3, output
    assert words in output
    (found,) = results.read_all(tmp_path)
    assert found.verdict == "wrong"
    assert fault == "end" or found.right_operators() == set()
    assert any(entry["case"] == "odd" and not entry["problems"] for entry in found.checks)


def test_no_time_left_is_said(toy_library: Path, tmp_path: Path) -> None:
    code, output = run_check(toy_library, tmp_path, "--budget", "0")
    assert code == 3, output
    (found,) = results.read_all(tmp_path)
    assert found.verdict == "incomplete"
    assert found.checks == ()
    assert set(found.dropped) == {
        "compute-sanitizer: not asked for",
        f"{TOY}: all of it, for time",
        "toy: no case ran",
    }


def test_benchmarks_follow_the_checks(toy_library: Path, tmp_path: Path) -> None:
    """The toy has none, so that every benchmark is left out by name; the ceilings are measured all the same."""
    command = [sys.executable, "-m", "plugins.cuda.check", "--library", str(toy_library), "--device", "cpu"]
    command += [
        "--modules",
        TOY,
        "--no-engines",
        "--no-sanitizer",
        "--output",
        str(tmp_path),
        "--scale",
        "quick",
    ]
    done = subprocess.run(command, cwd=check_processes.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = results.read_all(tmp_path)
    assert "benchmark kv_write, bf16, 64 MiB: the library has no such operator" in found.dropped
    assert found.measurements == ()
    assert set(found.seconds) == {"build", "checks", "engines", "benchmarks"}


def test_operators_are_checked_by_name(toy_library: Path, tmp_path: Path) -> None:
    code, output = run_check(toy_library, tmp_path, "--operators", "paged")
    assert code == 2
    assert "has no operators ['paged']; it has ['toy']" in output


def test_no_gpu_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert check.main([]) == 2
    assert "sees no GPU; run this where there is one" in capsys.readouterr().err


def test_torch_is_all_that_a_gpu_machine_must_have() -> None:
    """Everything that gpu-check imports, in a Python without the other packages of this project."""
    project = tomllib.loads((check_processes.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    packages = {re.split(r"\W", text.replace("-", "_"))[0] for text in project["dependencies"]}
    packages = (packages | {"yaml"}) - {"torch", "numpy"}
    modules = ["plugins.cuda.check", "plugins.cuda.check_operator", "plugins.graph_walk.check"]
    modules += check_processes.modules_of_checks()
    code = (
        f"import importlib, sys; sys.modules.update(dict.fromkeys({sorted(packages)}))\n"
        f"for name in {modules}: importlib.import_module(name)\n"
        "from plugins.bench.cuda.__main__ import all_benchmarks; print(len(list(all_benchmarks())))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=check_processes.ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20


def test_device_that_fails_is_taken_up_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A child that ends inside its second case: that one is wrong, the rest runs in another process."""
    seen: list[list[str]] = []

    def child(command: list[str], seconds: float) -> tuple[int, str]:
        seen.append(command)
        skip = int(command[command.index("--skip") + 1])
        lines: list[dict[str, object]] = []
        for index in range(skip, 4):
            lines.append({"begin": index, "case": f"case {index}", "operator": "toy"})
            if index == 1:
                break
            lines.append({"report": check_processes.problem("toy", f"case {index}", "") | {"problems": []}})
        else:
            lines.append({"end": 4})
        report = Path(command[command.index("--report") + 1])
        report.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"begin": 7, "ca')
        return (0, "") if skip else (-11, "Segmentation fault")

    monkeypatch.setattr(check_processes, "finished", child)
    run = check_processes.Run(tmp_path, "cpu", 1, time.perf_counter() + 60, tmp_path, None)
    check_processes.check_module(run, TOY, "full")
    assert [command[command.index("--skip") + 1] for command in seen] == ["0", "2"]
    assert [(entry["case"], bool(entry["problems"])) for entry in run.checks] == [
        ("case 0", False),
        ("case 1", True),
        ("case 2", False),
        ("case 3", False),
    ]
    assert "code -11: Segmentation fault" in run.checks[1]["problems"][0]


def test_what_a_process_started_ends_with_it(tmp_path: Path) -> None:
    """As compute-sanitizer does, the shell leaves the work to a child: here one that holds a lock."""
    held = tmp_path / "lock"
    code, words = check_processes.finished(["sh", "-c", f"flock {held} sleep 3000 & wait"], 1)
    assert (code, words) == (check_processes.OUT_OF_TIME, "no end within 1 s")
    with locked(held):  # would wait for the child
        pass
    assert check_processes.finished(["sh", "-c", "echo one; echo two >&2; exit 3"], 60) == (3, "one\ntwo")


def test_ctrl_c_ends_what_is_running(tmp_path: Path) -> None:
    """The child says that it runs by opening a pipe."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(check_processes.finished, ["sh", "-c", f"echo > {pipe}; sleep 3000"], 3000)
        assert pipe.read_text() == "\n"
        check_processes.end_all()
        assert job.result(60)[0] == -signal.SIGKILL


@pytest.mark.parametrize(
    ("code", "begun", "verdict"),
    [
        (0, True, "clean"),
        (check_processes.SANITIZER_ERRORS, True, "errors"),
        (check_processes.SANITIZER_ERRORS, False, "not run"),
        (1, True, "not run"),
    ],
)
def test_verdict_of_the_sanitizer(
    code: int, begun: bool, verdict: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """begun: whether a case did. Where compute-sanitizer does not know the device, it ends with its code too."""

    def child(command: list[str], seconds: float, environment: dict[str, str]) -> tuple[int, str]:
        assert environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"
        assert command[:2] == ["/bin/sanitizer", "--tool=racecheck"]
        report = Path(command[command.index("--report") + 1])
        if begun:
            report.write_text('{"begin": 0, "case": "a", "operator": "toy"}\n{"end": 1}\n')
        return code, "what it said"

    monkeypatch.setattr(check_processes, "finished", child)
    run = check_processes.Run(tmp_path, "cuda", 1, time.perf_counter() + 60, tmp_path, None)
    check_processes.sanitize(run, "/bin/sanitizer", TOY, "racecheck")
    (report,) = run.sanitizer
    operator = "toy" if begun else "toy_checks"
    assert (report.operator, report.tool, report.verdict) == (operator, "racecheck", verdict)
    assert results.verdict([], run.sanitizer, complete=True) == ("wrong" if verdict == "errors" else "right")


def test_moving_results_and_left_over_workspace_are_noticed(execution: Execution) -> None:
    """A library whose second call gives another last bit, as a race would."""
    library = execution.library
    calls = 0
    honest = library.run

    def run(operator: str, tensors: dict[str, torch.Tensor], *rest: object, **more: object) -> None:
        nonlocal calls
        honest(operator, tensors, *rest, **more)  # type: ignore[arg-type]
        calls += 1
        if calls == 5:
            tensors["output"].view(torch.int16)[0, 0] += 1

    library.run = run  # type: ignore[method-assign]
    report = execution.check(toy_checks.product("odd", 3, 17, 1))
    assert report.problems == ("1 of 100 repetitions gave other bits",)


def test_repetitions_that_time_forbids_are_named(execution: Execution) -> None:
    report = execution.check(toy_checks.product("odd", 3, 17, 1), seconds=0)
    assert report.left_out == ("100 of 100 repetitions, for time",)
    assert report.problems == ()


def test_written_input_and_unwritten_output_are_noticed(execution: Execution) -> None:
    case = toy_checks.product("odd", 3, 17, 1)
    execution.library.run = lambda *_, **__: None  # type: ignore[method-assign]
    assert "output: relative error inf" in execution.check(case).problems[0]

    def run(operator: str, tensors: dict[str, torch.Tensor], *_: object, **__: object) -> None:
        tensors["output"].copy_(tensors["input"] * 2)
        tensors["input"][0, 0] = 7

    execution.library.run = run  # type: ignore[method-assign, assignment]
    assert "input is an input and was written to" in execution.check(case).problems


@pytest.mark.parametrize("margin", [0, 16, 4096])
@pytest.mark.parametrize(("place", "words"), [(-1, "before the first byte"), (0, "after the last byte")])
def test_guards_see_one_byte(margin: int, place: int, words: str) -> None:
    buffer = GuardedBuffer(100, CPU, margin)
    buffer.poison()
    assert buffer.overwritten() == []
    if margin == 0:
        assert buffer._all.numel() == 100
        return
    assert buffer.bytes.data_ptr() % 256 == 0
    buffer._all[buffer._begin + (100 if place == 0 else -1)] = 0
    assert buffer.overwritten() == [f"1 guard bytes {words} overwritten, the nearest 1 away"]


def test_tensor_between_guards_keeps_its_strides() -> None:
    for start in (
        torch.arange(24.0).reshape(2, 3, 4),
        torch.arange(48, dtype=torch.bfloat16).reshape(4, 12)[:, :5],
        torch.zeros(0, 4),
        torch.tensor(3, dtype=torch.int64),
        torch.tensor([True, False]),
    ):
        guarded = GuardedTensor(start, CPU, 64)
        assert torch.equal(guarded.tensor, start)
        assert guarded.tensor.stride() == start.stride()
        guarded.poison()
        guarded.restore()
        assert torch.equal(guarded.tensor, start)


def test_company_compares_bits() -> None:
    case = Case("x", "toy", {}, {})
    rows = (torch.tensor([0, 1]), torch.tensor([2, 0]))
    company = Company("two rows", case, case, {"output": rows})
    alone = torch.tensor([[1.0, float("nan")], [0.0, 2.0]])
    among = torch.tensor([[0.0, 2.0], [9.0, 9.0], [1.0, float("nan")]])
    assert differences(company, {"output": alone}, {"output": among}) == []
    among[0, 0] = -0.0
    (words,) = differences(company, {"output": alone}, {"output": among})
    assert words == "two rows: output: 1 of 4 elements differ in company"
