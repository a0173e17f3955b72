"""Running Python code that a user names: within a time limit, and with errors told by the user's own line."""

from __future__ import annotations

import linecache
import os
import signal
import sys
import sysconfig
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from model_repo.runtime.errors import BadInput
from pipeline.deadline import TIME_OPTION, announced

_OURS = Path(__file__).resolve().parents[1]
_LIBRARIES = tuple(
    str(Path(sysconfig.get_path(name)).resolve()) for name in ("stdlib", "platstdlib", "purelib", "platlib")
)


class _TimeOver(BaseException):
    """Not an Exception, so that the user's own handlers do not swallow it. `line`: where the code was."""

    def __init__(self, line: str) -> None:
        super().__init__(line)
        self.line = line


@contextmanager
def guarded(what: str, seconds: float) -> Iterator[None]:
    """Runs the user's code in the block. Whatever it raises becomes BadInput with the user's line.

    `what` names it in messages. The time limit works in the main thread of a POSIX system (elsewhere there is none),
    and once the interpreter has control; a child process (`pipeline.child`) whose code never gives it back is killed.
    """
    try:
        with announced(what, seconds), _time_limit(seconds):
            yield
    except BadInput:
        raise
    except _TimeOver as error:
        raise BadInput(
            f"{what} has not ended within {seconds:g} seconds{_at(error.line)}; make it faster, or raise {TIME_OPTION}"
        ) from None
    except (Exception, SystemExit) as error:
        text = " ".join(str(error).split())
        reason = f"{type(error).__name__}: {text:.500}" if text else type(error).__name__
        raise BadInput(f"{what} raised {reason}{_at(user_line(error))}") from error


def user_line(error: BaseException) -> str:
    """'FILE:LINE, in FUNCTION: CODE' of the innermost frame of the user's own code; '' when there is none."""
    found = ""
    while True:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if _is_own(frame.filename)]
        if own:
            last = own[-1]
            found = _in_words(last.filename, last.lineno or 0, last.name)
        cause = error.__cause__ or error.__context__
        if cause is None:
            return found
        error = cause


def _at(line: str) -> str:
    return f" ({line})" if line else ""


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    if os.name != "posix" or threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise _TimeOver(_line_of(frame))

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _line_of(frame: FrameType | None) -> str:
    """The user's line that runs now: the innermost one of his own frames."""
    while frame is not None:
        name = frame.f_code.co_filename
        if _is_own(name):
            return _in_words(name, frame.f_lineno, frame.f_code.co_name)
        frame = frame.f_back
    return ""


def _is_own(filename: str) -> bool:
    """Whether a frame belongs to neither Python, an installed package nor Slipway."""
    if filename.startswith("<"):
        return False
    path = Path(filename).resolve()
    return not path.is_relative_to(_OURS) and not any(path.is_relative_to(folder) for folder in _LIBRARIES)


def _in_words(filename: str, number: int, function: str) -> str:
    """The line with its file, relative to the current folder where it lies below it."""
    path = Path(filename)
    if path.is_absolute() and path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    code = linecache.getline(filename, number).strip()
    return f"{path}:{number}, in {function}: {code}"


def nearest_name(module: object, name: str) -> str:
    """'; did you mean ...?' for a name that `module` lacks; '' when nothing is near."""
    import difflib

    near = difflib.get_close_matches(name, dir(module), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def import_from_here() -> None:
    """Makes modules in the current folder importable, as `python -m` does."""
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
