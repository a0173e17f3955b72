"""Runs one function in a process of its own: what it loads is gone when it ends.

A torch module, its tracing and everything that torch maps would otherwise stay in memory through all later
stages. Arguments and result are JSON; larger things go through files that the arguments name.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from model_repo.runtime import errors
from model_repo.runtime.errors import BadInput, SlipwayError

from .deadline import TIME_OPTION, announce_in, overdue
from .packages import missing_packages

DEADLINE = "deadline.json"
_POLL_SECONDS = 0.5
_PR_SET_PDEATHSIG = 1


def in_child(module: str, function: str, arguments: dict[str, Any]) -> Any:
    """`module.function(**arguments)` in a child process.

    Raises what it raises of Slipway's errors, its OSErrors, and BadInput for a missing package; any other
    exception becomes a RuntimeError caused by the child's traceback. The child ends with this process,
    however that ends. Raises SlipwayError when the child dies without a word (killed, out of memory), and BadInput when
    code with a time limit (`pipeline.deadline`) goes on beyond it: the child is then killed.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, "-m", __name__, module, function, str(result), str(os.getpid())]
        code = _run(command, json.dumps(arguments), Path(folder) / DEADLINE)
        if not result.is_file():
            ending = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
            raise SlipwayError(f"the process that ran {module}.{function} ended with {ending}")
        answer = json.loads(result.read_text(encoding="utf-8"))
    if "error" in answer:
        kind = getattr(errors, answer["error"], SlipwayError)
        raise kind(answer["message"])
    if "os_error" in answer:
        raise OSError(*answer["os_error"])
    if "fault" in answer:
        raise RuntimeError(answer["fault"]) from _ChildTraceback(answer["traceback"])
    return answer["value"]


def _run(command: list[str], arguments: str, limits: Path) -> int:
    """Runs the child to its end; gives its exit code. Raises BadInput when it is beyond what `limits` says."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as process:
        try:
            given: str | None = arguments
            while True:
                try:
                    process.communicate(given, timeout=_POLL_SECONDS)
                except subprocess.TimeoutExpired:
                    given = None
                    late = overdue(limits)
                    if late is not None:
                        raise BadInput(
                            f"{late.what} has not ended within {late.seconds:g} seconds, in a call that cannot be "
                            f"interrupted, so its process was ended; make it faster, or raise {TIME_OPTION}"
                        ) from None
                else:
                    return process.returncode
        except BaseException:
            process.kill()
            raise


class _ChildTraceback(Exception):
    """Carries the text of a traceback from another process into this one's."""


def _die_with(parent: int) -> None:
    """Ends this process when its parent ends (Linux; elsewhere it runs to its end)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            sys.exit(1)


def _error_kind(error: SlipwayError) -> str:
    """The nearest class that the parent can raise by name."""
    return next(kind.__name__ for kind in type(error).__mro__ if hasattr(errors, kind.__name__))


def main() -> None:
    module, function, result, parent = sys.argv[1:]
    _die_with(int(parent))
    announce_in(Path(result).with_name(DEADLINE))
    arguments = json.load(sys.stdin)
    Path(result).write_text(json.dumps(_answer(module, function, arguments)), encoding="utf-8")


def _answer(module: str, function: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """What the function gives or raises, as JSON."""
    try:
        with missing_packages():
            return {"value": getattr(importlib.import_module(module), function)(**arguments)}
    except SlipwayError as error:
        return {"error": _error_kind(error), "message": str(error)}
    except OSError as error:
        return {"os_error": [error.errno, error.strerror, str(error.filename or "")]}
    except Exception as error:
        fault = f"{type(error).__name__}: {error}"
        return {"fault": fault, "traceback": f"\n\n{traceback.format_exc()}"}


if __name__ == "__main__":
    main()
