"""The builder's progress, as it reports it, as bars on a terminal."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import TaskID


@contextmanager
def progress_monitor(trt: Any, stream: IO[str]) -> Iterator[Any]:
    """An IProgressMonitor that draws a bar for each phase that the builder is in.

    Nothing is drawn where `stream` is no terminal. The builder calls it from several threads.
    """
    from rich.console import Console  # imported only by builds that someone watches
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(file=stream)
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.lock = threading.Lock()
            self.phases: dict[str, TaskID] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self.lock:
                self.phases[phase_name] = bars.add_task(phase_name, total=num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self.lock:
                if phase_name in self.phases:
                    bars.update(self.phases[phase_name], completed=step + 1)
            return True

        def phase_finish(self, phase_name: str) -> None:
            with self.lock:
                task = self.phases.pop(phase_name, None)
                if task is not None:
                    bars.remove_task(task)

    with bars:
        yield Monitor()
