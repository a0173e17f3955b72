"""Tables and progress on a terminal, also where `rich` is not installed (a bare GPU machine)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

try:
    import rich.console
    import rich.progress
    import rich.table

    RICH = True
except ImportError:
    RICH = False


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints a table; columns whose cells are all numbers (or empty) stand to the right."""
    cells = [[_text(cell) for cell in row] for row in rows]
    right = [
        all(isinstance(row[i], int | float) or row[i] in (None, "") for row in rows)
        for i in range(len(columns))
    ]
    if RICH and sys.stdout.isatty():
        table = rich.table.Table(title=title, title_justify="left")
        for name, is_right in zip(columns, right, strict=True):
            table.add_column(name, justify="right" if is_right else "left")
        for row in cells:
            table.add_row(*(cell.replace("[", r"\[") for cell in row))
        rich.console.Console().print(table)
        return
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    print(title)
    for row in [list(columns), *cells]:
        parts = (
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(row, widths, right, strict=True)
        )
        print("  " + "  ".join(parts).rstrip())


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[str], None]]:
    """Shows how many of `total` parts are done; call what it yields with the name of each part that is.

    A moving bar on a terminal; elsewhere nothing but a line a part, so that a log shows where it stands.
    """
    if RICH and sys.stderr.isatty():
        with rich.progress.Progress(console=rich.console.Console(stderr=True)) as bar:
            task = bar.add_task(what, total=total)

            def advance(name: str) -> None:
                bar.update(task, advance=1, description=f"{what}: {name}")

            yield advance
        return
    done = 0

    def log(name: str) -> None:
        nonlocal done
        done += 1
        print(f"{what} {done}/{total}: {name}", file=sys.stderr, flush=True)

    yield log


def _text(cell: object) -> str:
    if cell is None:
        return ""
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
