"""A benchmark as data: what is called, what it moves and computes, what it is compared with, and its goals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from plugins.cuda.library import Library, aligned_workspace
from plugins.cuda.results import GoalResult, Measurement
from plugins.torch_cuda import run

from .timing import Call, Ceilings, Clock

Kind = Literal["matmul rate", "copy bandwidth", "ahead of", "times faster than", "microseconds", "floors"]
UNITS: Mapping[Kind, str] = {
    "matmul rate": "of the matmul rate",
    "copy bandwidth": "of copy bandwidth",
    "ahead of": "times the speed of",
    "times faster than": "times the speed of",
    "microseconds": "us",
    "floors": "of the larger floor, after the smaller",
}


@dataclass(frozen=True)
class Goal:
    """What a case must reach. `of`: the baseline's name ("" is the fastest of all) or the other case's.

    matmul rate, copy bandwidth: share of the measured ceiling, at least. ahead of: the baseline's time over ours, at
    least. times faster than: another case's time over this one's, at least. microseconds: at most. floors: of bytes /
    bandwidth and operations / matmul rate, (time - the smaller) / the larger, at most.
    """

    kind: Kind
    bound: float
    of: str = ""

    @property
    def is_upper(self) -> bool:
        """Whether less is better."""
        return self.kind in ("microseconds", "floors")


@dataclass(frozen=True)
class Prepared:
    """Calls of one case on rotated buffers. baselines: by name, what makes their calls; it may raise."""

    calls: Sequence[Call]
    bytes_moved: int
    operations: int
    baselines: Mapping[str, Callable[[], Sequence[Call]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Benchmark:
    """One case of one operator. `prepare` makes it on the bench's device."""

    operator: str
    case: str
    prepare: Callable[[Bench], Prepared]
    goals: tuple[Goal, ...] = ()


class Bench:
    """The device, the kernels, and what was measured so far (microseconds by operator and case)."""

    def __init__(self, library: Library, device: torch.device, seconds: float = 0.25) -> None:
        self.library = library
        self.device = device
        self.clock = Clock(device, seconds)
        self.ceilings = Ceilings(self.clock) if device.type == "cuda" else Ceilings(self.clock, 64)
        self.earlier: dict[tuple[str, str], float] = {}

    def randn(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """Normal numbers; never zeros, on which a GPU runs faster."""
        return torch.randn(shape, device=self.device).to(dtype)

    def randint(self, least: int, beyond: int, *shape: int, dtype: torch.dtype) -> Tensor:
        """Integers from `least` to `beyond` - 1."""
        return torch.randint(least, beyond, shape, device=self.device).to(dtype)

    def kernel(
        self, operator: str, tensors: Mapping[str, Tensor], attributes: Mapping[str, float] | None = None
    ) -> Call:
        """A call of ours with a workspace of its own, which can be captured in a graph."""
        given = dict(attributes or {})
        needed = self.library.workspace_bytes(operator, tensors, given)
        workspace = aligned_workspace(needed, self.device)
        return lambda: run(self.library, operator, tensors, given, workspace)

    def measure(self, benchmark: Benchmark) -> Measurement:
        """Times a case and its baselines, and holds them against its goals."""
        prepared = benchmark.prepare(self)
        timing = self.clock.measure(prepared.calls)
        self.earlier[benchmark.operator, benchmark.case] = timing.microseconds
        baselines: dict[str, float | str] = {}
        for name, make in prepared.baselines.items():
            try:
                baselines[name] = self.clock.measure(make()).microseconds
            except Exception as error:  # a baseline is another's code: whatever it raises is its answer
                words = str(error).strip().splitlines() or [""]
                baselines[name] = f"none: {type(error).__name__}: {words[0][:160]}"
        goals = [
            self._judged(goal, benchmark, timing.microseconds, prepared, baselines)
            for goal in benchmark.goals
        ]
        return Measurement(
            benchmark.operator,
            benchmark.case,
            timing.microseconds,
            timing.spread,
            timing.replayed,
            prepared.bytes_moved,
            prepared.operations,
            tuple(goals),
            baselines,
        )

    def _judged(
        self,
        goal: Goal,
        benchmark: Benchmark,
        microseconds: float,
        prepared: Prepared,
        baselines: Mapping[str, float | str],
    ) -> GoalResult:
        achieved = self._achieved(goal, benchmark.operator, microseconds, prepared, baselines)
        unit = (
            f"{UNITS[goal.kind]} {goal.of or 'the best baseline'}"
            if goal.kind == "ahead of"
            else UNITS[goal.kind]
        )
        if goal.kind == "times faster than":
            unit = f"{unit} '{goal.of}'"
        reached = None
        if achieved is not None:
            reached = achieved <= goal.bound if goal.is_upper else achieved >= goal.bound
        return GoalResult(unit, goal.bound, goal.is_upper, achieved, reached)

    def _achieved(
        self,
        goal: Goal,
        operator: str,
        microseconds: float,
        prepared: Prepared,
        baselines: Mapping[str, float | str],
    ) -> float | None:
        """None where what the goal compares with was not measured."""
        seconds = microseconds / 1e6
        if goal.kind == "microseconds":
            return microseconds
        if goal.kind == "ahead of":
            times = [t for name, t in baselines.items() if goal.of in ("", name) and not isinstance(t, str)]
            return min(times) / microseconds if times else None
        if goal.kind == "times faster than":
            other = self.earlier.get((operator, goal.of))
            return None if other is None else other / microseconds
        if goal.kind == "matmul rate":
            return prepared.operations / seconds / self.ceilings.matmul_rate()
        bandwidth = self.ceilings.copy_bandwidth(prepared.bytes_moved)
        if goal.kind == "copy bandwidth":
            return prepared.bytes_moved / seconds / bandwidth
        floors = (prepared.bytes_moved / bandwidth, prepared.operations / self.ceilings.matmul_rate())
        return (seconds - min(floors)) / max(floors)
