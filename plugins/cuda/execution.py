"""Runs cases through the library's C interface on a device, and looks at them from every side that a device allows.

The device is a GPU, or the CPU when the library is the emulated one. For each case: outputs and workspace start
poisoned, every buffer lies between guard bytes, repetitions must give equal bits (a moving error is a race), also
with other bytes left in the workspace, and a replayed CUDA graph must give the same bits as the plain call.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from model_repo.runtime.errors import BadInput

from .case import POISON, Case, Outcome, faults, raw_bytes, relative_error
from .company import Company, differences
from .guarded import GuardedBuffer, GuardedTensor
from .library import INVALID, KernelError, Library

MARGIN = 4096
REPETITIONS = 100
SECONDS_A_CASE = 3.0
LEFT_IN_WORKSPACE = (POISON, 0x00, 0x3C, 0x7F)
"""What repetitions find in the workspace, by turns: no result may depend on it."""


class DeviceLost(Exception):
    """The device failed while a kernel ran; nothing more can run in this process."""


@dataclass(frozen=True)
class CaseReport:
    """What was seen of one case. `problems` is empty when all is right; `left_out` says what was not done, and why.

    errors: by output, ||got - expected|| / ||expected|| (0 where the bits are equal, None where
    that is no number).
    """

    operator: str
    case: str
    problems: tuple[str, ...] = ()
    errors: Mapping[str, float | None] = field(default_factory=dict)
    repetitions: int = 0
    left_out: tuple[str, ...] = ()
    seconds: float = 0.0


class Execution:
    """A library on a device. margin: guard bytes on each side of a buffer, 0 for none."""

    def __init__(self, library: Library, device: torch.device, margin: int = MARGIN) -> None:
        self.library = library
        self.device = device
        self.margin = margin

    def check(
        self,
        case: Case,
        *,
        repetitions: int = REPETITIONS,
        seconds: float = SECONDS_A_CASE,
        graph: bool = True,
    ) -> CaseReport:
        """Everything above, on one case; repetitions end early after `seconds`. Raises DeviceLost."""
        started = time.perf_counter()
        try:
            call = _Call(self, case)
        except torch.OutOfMemoryError:
            return CaseReport(
                case.operator, case.name, left_out=("everything: the GPU's memory is too small",)
            )
        code, message = call.run_once()
        tensors = {name: buffer.tensor.cpu() for name, buffer in call.buffers.items()}
        problems = faults(case, Outcome(code, message, tensors)) + call.overwritten()
        errors: dict[str, float | None] = {}
        left_out: list[str] = []
        done = 0
        if code == 0 and case.error is None:
            errors = {name: _error(tensors[name], want) for name, want in case.expected.items()}
            call.remember()
            done, unequal = call.repeat(repetitions, seconds)
            if unequal:
                problems.append(f"{unequal} of {done} repetitions gave other bits")
            if done < repetitions:
                left_out.append(f"{repetitions - done} of {repetitions} repetitions, for time")
            if graph and self.device.type == "cuda":
                problems += call.replay()
            problems += [words for words in call.overwritten() if words not in problems]
        return CaseReport(
            case.operator,
            case.name,
            tuple(problems),
            errors,
            done,
            tuple(left_out),
            time.perf_counter() - started,
        )

    def check_company(self, company: Company) -> CaseReport:
        """The request's result alone against its result in company. Raises DeviceLost."""
        started = time.perf_counter()
        results: list[Mapping[str, Tensor]] = []
        problems: list[str] = []
        for case in (company.alone, company.among):
            call = _Call(self, case)
            code, message = call.run_once()
            results.append({name: buffer.tensor for name, buffer in call.buffers.items()})
            if code:
                problems.append(f"{case.name}: code {code}: {message}")
            problems += [f"{case.name}: {words}" for words in call.overwritten()]
        if not problems:
            problems = differences(company, *results)
        seconds = time.perf_counter() - started
        return CaseReport(company.alone.operator, company.name, tuple(problems), seconds=seconds)


class _Call:
    """A case's tensors and workspace on the device."""

    def __init__(self, execution: Execution, case: Case) -> None:
        self._execution = execution
        self._case = case
        description = execution.library.describe(case.operator)
        device, margin = execution.device, execution.margin
        start = case.start()
        self.buffers = {name: GuardedTensor(tensor, device, margin) for name, tensor in start.items()}
        for name, buffer in self.buffers.items():
            if getattr(start[name], "null_address", False):
                buffer.tensor.null_address = True  # type: ignore[attr-defined]
        self._tensors = {name: buffer.tensor for name, buffer in self.buffers.items()}
        self._written = [p.name for p in description.tensors if p.role != "input" and p.name in self.buffers]
        self._workspace: GuardedBuffer | None = None
        self._first: dict[str, Tensor] = {}

    def run_once(self) -> tuple[int, str]:
        """Code and message of a call with a poisoned workspace of just the size asked for; waits for its end."""
        library, case = self._execution.library, self._case
        try:
            needed = library.workspace_bytes(case.operator, self._tensors, case.attributes)
            self._workspace = GuardedBuffer(needed, self._execution.device, self._execution.margin)
            self._workspace.poison()
            self._run()
        except KernelError as error:
            self._wait()
            return error.code, str(error)
        except BadInput as error:
            return INVALID, str(error)
        self._wait()
        return 0, ""

    def overwritten(self) -> list[str]:
        """Guards around any buffer that are no longer whole, in words."""
        named: dict[str, GuardedBuffer] = {**self.buffers}
        if self._workspace is not None:
            named["the workspace"] = self._workspace
        return [f"{name}: {words}" for name, buffer in named.items() for words in buffer.overwritten()]

    def remember(self) -> None:
        """Keeps what the call wrote, as what all others must write."""
        self._first = {name: self.buffers[name].bytes.clone() for name in self._written}

    def repeat(self, count: int, seconds: float) -> tuple[int, int]:
        """Repetitions made, and how many of them wrote other bits than the first call."""
        begun = time.perf_counter()
        unequal = torch.zeros((), dtype=torch.int64, device=self._execution.device)
        done = 0
        while done < count and time.perf_counter() - begun < seconds:
            self._prepare(LEFT_IN_WORKSPACE[done % len(LEFT_IN_WORKSPACE)])
            self._run()
            unequal += self._differs()
            done += 1
            if done % 10 == 0:
                self._wait()  # else the host is far ahead of the device, and the clock above means nothing
        self._wait()
        return done, int(unequal)

    def replay(self) -> list[str]:
        """What is wrong with the call captured as a CUDA graph and replayed, in words."""
        try:
            recorded = torch.cuda.CUDAGraph()
            self._prepare(POISON)
            self._wait()
            with torch.cuda.graph(recorded):
                self._run()
            self._prepare(LEFT_IN_WORKSPACE[1])
            recorded.replay()
        except (RuntimeError, KernelError) as error:
            return [f"cannot be captured in a CUDA graph: {str(error).splitlines()[0]}"]
        self._wait()
        return ["a replayed CUDA graph gave other bits"] if int(self._differs()) else []

    def _run(self) -> None:
        assert self._workspace is not None
        stream = 0
        if self._execution.device.type == "cuda":
            stream = torch.cuda.current_stream(self._execution.device).cuda_stream
        self._execution.library.run(
            self._case.operator,
            self._tensors,
            self._case.attributes,
            workspace=self._workspace.bytes,
            stream=stream,
        )

    def _prepare(self, pattern: int) -> None:
        assert self._workspace is not None
        self._workspace.poison(pattern)
        for name in self._written:
            self.buffers[name].restore()

    def _differs(self) -> Tensor:
        """Whether a written tensor is other than after the first call, as 0 or 1 on the device."""
        unequal = torch.zeros((), dtype=torch.bool, device=self._execution.device)
        for name, first in self._first.items():
            unequal |= (self.buffers[name].bytes != first).any()
        return unequal.long()

    def _wait(self) -> None:
        if self._execution.device.type != "cuda":
            return
        try:
            torch.cuda.synchronize(self._execution.device)
        except RuntimeError as error:
            raise DeviceLost(str(error).splitlines()[0]) from error


def _error(got: Tensor, want: Tensor) -> float | None:
    if torch.equal(raw_bytes(got), raw_bytes(want)):
        return 0.0
    error = relative_error(got, want)
    return error if math.isfinite(error) else None
