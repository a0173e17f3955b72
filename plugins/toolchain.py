"""What every build of native code here needs: commands run, a cache folder and a lock."""

from __future__ import annotations

import fcntl
import os
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from model_repo.runtime.errors import BadInput, SlipwayError


def run_command(command: Sequence[str], quoted_lines: int = 30) -> str:
    """Standard output and error of a command, in that order. Raises SlipwayError with its words when it fails."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        words = "\n".join((result.stderr or result.stdout).splitlines()[:quoted_lines])
        raise SlipwayError(f"{shlex.join(command)} failed with exit code {result.returncode}:\n{words}")
    return result.stdout + result.stderr


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
