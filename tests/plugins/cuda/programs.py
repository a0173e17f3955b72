"""The test programs of the emulator: each prints a line a check, its name, a tab, and "ok" or what is wrong."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from plugins.cuda.emulated import ENVIRONMENT, Build

FOLDER = Path(__file__).parent


def results(program: str, flavour: str, seed: int, *names: str) -> dict[str, str]:
    """What came of the checks of PROGRAM.cu, by name; all of them when none is named.

    When the program ends early (a sanitizer's report), what it said is the result of the last check that was named, or
    of "the end".
    """
    run = subprocess.run(
        [str(Build(flavour, ()).program(FOLDER / f"{program}.cu")), str(seed), *names],
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, **ENVIRONMENT},
        timeout=300,
        check=False,
    )
    found = dict(line.split("\t", 1) for line in run.stdout.splitlines())
    if run.returncode != 0:
        found[names[-1] if names else "the end"] = run.stderr
    return found
