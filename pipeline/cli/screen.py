"""What commands show: progress of a build on stderr, tables on stdout."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from pipeline.disk import in_words

if TYPE_CHECKING:
    from rich.status import Status

    from pipeline.builder import BuildResult
    from pipeline.stages import StageRow

_COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


class ScreenProgress:
    """A build's progress on stderr: a spinner or a bar on a terminal, plain lines elsewhere. A context manager."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._status: Status | None = None
        self._bar: Progress | None = None
        self._stage = ""

    def __enter__(self) -> ScreenProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def started(self, stage: str) -> None:
        """A stage begins: the spinner turns until it ends."""
        self._stop()
        self._stage = stage
        if self._console.is_terminal:
            self._status = self._console.status(f"{stage} ...")
            self._status.start()
        else:
            self.say(f"{stage} ...")

    def advanced(self, done: int, total: int) -> None:
        """A bar in the spinner's place, on a terminal."""
        if not self._console.is_terminal:
            return
        if self._bar is None:
            self._hide()
            self._bar = Progress(*_COLUMNS, console=self._console, transient=True)
            self._bar.start()
            self._bar.add_task(self._stage)
        self._bar.update(self._bar.task_ids[0], completed=done, total=total)

    def finished(self, row: StageRow) -> None:
        """One line a stage."""
        self._stop()
        self.say(f"{row.stage}: {f'{row.seconds:.1f} s' if row.ran else 'unchanged'}")

    def say(self, text: str) -> None:
        """One line."""
        self._console.print(text, markup=False, soft_wrap=True)

    def stand_aside(self) -> None:
        """The spinner goes away."""
        self._stop()

    def _stop(self) -> None:
        self._hide()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _hide(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None


@contextmanager
def working(what: str) -> Iterator[None]:
    """Says on stderr that `what` goes on: a spinner on a terminal until it ends, a line elsewhere."""
    with ScreenProgress() as progress:
        progress.started(what)
        yield


def stage_table(rows: Sequence[StageRow]) -> Table:
    """Stages with seconds, bytes and parity."""
    from pipeline.parity.compare import in_words as parity_in_words

    table = Table("stage", "state", title_justify="left")
    table.add_column("seconds", justify="right")
    table.add_column("bytes", justify="right")
    table.add_column("parity with the stage before")
    for row in rows:
        state = "built" if row.ran else "unchanged"
        seconds, size = f"{row.seconds:.2f}", in_words(row.bytes)
        add_row(table, row.stage, state, seconds, size, parity_in_words(row.parity))
    return table


def add_row(table: Table, *cells: str) -> None:
    """Adds cells as they are: a shape in brackets is no markup."""
    table.add_row(*(Text(cell) for cell in cells))


def show(*tables: Table) -> None:
    """Prints tables on stdout, as wide as they need where stdout is no terminal."""
    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        console = Console(file=sys.stdout, highlight=False, width=160)
    for table in tables:
        console.print(table)


def show_result(result: BuildResult) -> None:
    """The stage table, and where the repository lies if there is one."""
    show(stage_table(result.rows))
    if any(row.stage == "emit" for row in result.rows):
        print(f"repository: {result.repository}")
    elif any(row.stage == "compile" for row in result.rows):
        print(f"engine: {result.engine}")
