"""A measurement's table on screen and its JSON on disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.machine import describe


def report(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], data: Any, path: Path) -> None:
    """Prints the table, then writes `data` with the machine it was measured on to `path`."""
    machine = describe()
    table = Table(
        title=title, caption=f"{machine['processor']}, {machine['cores']} cores, {machine['instructions']}"
    )
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine, "results": data}, indent=2) + "\n", encoding="utf-8")


def ratio_of_medians(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """How many times `theirs` fits into `ours`, by medians of runs in alternation."""
    return median(ours) / median(theirs)
