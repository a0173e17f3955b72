"""What each step held, for tests and measurements."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class StepRow(NamedTuple):
    """One sequence's part of a step."""

    request_id: str
    num_computed_tokens: int  # in the cache before the step
    num_new_tokens: int


class StepRecord(NamedTuple):
    """One step: its sequences, seconds in the engine, and seconds of the whole step."""

    rows: tuple[StepRow, ...]
    executor_seconds: float
    seconds: float


@dataclass
class StepLog:
    """All steps since it was made; give it to an Engine to have one."""

    steps: list[StepRecord] = field(default_factory=list)
