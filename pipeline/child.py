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
from model_repo.runtime.errors import SlipwayError

from .packages import missing_packages

_PR_SET_PDEATHSIG = 1


def in_child(module: str, function: str, arguments: dict[str, Any]) -> Any:
    """`module.function(**arguments)` in a child process.

    Raises what it raises of Slipway's errors, its OSErrors, and BadInput for a missing package; any other
    exception becomes a RuntimeError caused by the child's traceback. The child ends with this process,
    however that ends. Raises SlipwayError when the child dies without a word (killed, out of memory).
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, "-m", __name__, module, function, str(result), str(os.getpid())]
        process = subprocess.run(command, input=json.dumps(arguments), text=True, check=False)
        if not result.is_file():
            code = process.returncode
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
