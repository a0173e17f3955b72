"""Functions in a process of their own: values, errors and deaths come back."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from model_repo.runtime.errors import BadInput, SlipwayError
from pipeline import deadline
from pipeline.child import in_child
from pipeline.sources.user_code import guarded

ROOT = Path(__file__).parent.parent.parent


def give_pid(**values: object) -> dict[str, object]:
    return {"pid": os.getpid(), **values}


def refuse(what: str) -> None:
    raise BadInput(f"no {what} here")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail_to_write(path: str) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def never_give_back(seconds: float) -> None:
    """The sum of endlessly many numbers is one call into C, which no signal handler of Python's interrupts."""
    with guarded("the model", seconds):
        sum(itertools.repeat(0))


def wait_beyond_the_limit(seconds: float) -> None:
    with guarded("the model", seconds):
        time.sleep(60)


def divide() -> float:
    return 1 / 0


def import_what_is_missing() -> None:
    raise ModuleNotFoundError("No module named 'transformers'", name="transformers")


def test_a_value_comes_back_from_another_process() -> None:
    value = in_child(__name__, "give_pid", {"a": [1, "two"]})
    assert value["a"] == [1, "two"]
    assert value["pid"] != os.getpid()


def test_errors_keep_their_class_and_words() -> None:
    with pytest.raises(BadInput, match="no luck here"):
        in_child(__name__, "refuse", {"what": "luck"})


def test_a_full_disk_stays_a_full_disk() -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        in_child(__name__, "fail_to_write", {"path": "somewhere"})
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "somewhere")


def test_a_fault_brings_its_traceback() -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError: division by zero") as caught:
        in_child(__name__, "divide", {})
    assert "in divide" in str(caught.value.__cause__)


def test_a_missing_package_is_bad_input() -> None:
    with pytest.raises(BadInput, match="'transformers' is missing"):
        in_child(__name__, "import_what_is_missing", {})


def test_a_child_that_is_killed_is_an_error_in_words() -> None:
    with pytest.raises(SlipwayError, match="SIGKILL"):
        in_child(__name__, "die", {})


@pytest.mark.skipif(sys.platform != "linux", reason="children follow their parent on Linux only")
def test_code_that_never_gives_the_interpreter_back_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadline, "GRACE_SECONDS", 0.5)
    with pytest.raises(
        BadInput,
        match=r"the model has not ended within 0\.5 seconds, in a call that cannot be interrupted.*--load-sec",
    ):
        in_child(__name__, "never_give_back", {"seconds": 0.5})
    children = (
        (Path("/proc/self/task") / str(threading.get_native_id()) / "children").read_text("ascii").split()
    )
    assert not any("never_give_back" in Path(f"/proc/{pid}/cmdline").read_text("utf-8") for pid in children)


def test_code_that_can_be_interrupted_is_ended_at_its_line() -> None:
    with pytest.raises(
        BadInput, match=r"within 0\.5 seconds \(tests/pipeline/test_child\.py:\d+.*sleep\(60\)\)"
    ):
        in_child(__name__, "wait_beyond_the_limit", {"seconds": 0.5})


def test_a_child_ends_with_its_parent(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    program = textwrap.dedent(f"""
        import signal
        from pipeline.child import in_child
        in_child("tests.pipeline.test_child", "wait_for_ever", {{"mark": {str(mark)!r}}})
    """)
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    while not mark.exists() or not mark.read_text():
        assert parent.poll() is None
    child = int(mark.read_text())
    parent.kill()
    parent.wait()
    while Path(f"/proc/{child}/stat").exists():  # pytest's own timeout bounds this
        if Path(f"/proc/{child}/stat").read_text().split(") ")[1].startswith("Z"):
            break  # dead, not yet collected by init


def wait_for_ever(mark: str) -> None:
    Path(mark).write_text(str(os.getpid()))
    signal.pause()
