"""What every build of native code here needs: commands run, a cache folder and a lock."""

from __future__ import annotations

import fcntl
import os
import shlex
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from model_repo.runtime.errors import BadInput, SlipwayError

QUOTED_LINES = 30
"""Lines of a failing command's words that an error quotes."""


def run_command(command: Sequence[str]) -> str:
    """What a command printed, standard output first. Raises SlipwayError with its words when it fails."""
    return run_measured(command)[0]


def run_measured(command: Sequence[str]) -> tuple[str, float]:
    """What a command printed, and the processor seconds that it and what it started took. Raises as run_command."""
    with (
        tempfile.TemporaryFile("w+", errors="replace") as out,
        tempfile.TemporaryFile("w+", errors="replace") as err,
    ):
        process = subprocess.Popen(command, stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        for file in (out, err):
            file.seek(0)
        printed, complaints = out.read(), err.read()
    if process.returncode != 0:
        words = "\n".join((complaints or printed).splitlines()[:QUOTED_LINES])
        raise SlipwayError(f"{shlex.join(command)} failed with exit code {process.returncode}:\n{words}")
    return printed + complaints, usage.ru_utime + usage.ru_stime


def cache_folder(beside: Path, what: str) -> Path:
    """`beside`, or the user's cache folder where that cannot be written. `what` is built there, for the error.

    Raises BadInput when neither can be written.
    """
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slipway"
    for folder in (beside, user_cache):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    raise BadInput(f"neither {beside} nor {user_cache} can be written; {what} are compiled into one of them")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on `path`; the system gives it back if the process dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
