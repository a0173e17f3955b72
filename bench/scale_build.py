"""Builds a model and says when each stage began and ended: `python -m bench.scale_build MODEL FOLDER`.

One JSON object a line on stdout: {"stage", "begin", "end", "parity"}, times of time.monotonic().
"""

from __future__ import annotations

import json
import sys
import time

from pipeline.builder import build
from pipeline.recipe import Recipe
from pipeline.stages import StageRow


class Clock:
    """Progress that prints the times of each stage."""

    def __init__(self) -> None:
        self._begin = time.monotonic()

    def started(self, stage: str) -> None:
        self._begin = time.monotonic()

    def finished(self, row: StageRow) -> None:
        line = {"stage": row.stage, "begin": self._begin, "end": time.monotonic(), "parity": row.parity}
        print(json.dumps(line), flush=True)

    def say(self, text: str) -> None:
        print(text, file=sys.stderr)


def main() -> None:
    model, folder = sys.argv[1:]
    build(Recipe.from_dict({"source": {"model": model}}), folder, progress=Clock())


if __name__ == "__main__":
    main()
