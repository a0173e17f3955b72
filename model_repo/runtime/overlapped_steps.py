"""Steps of which the next is planned, bound and queued while the device computes the one before it."""

from __future__ import annotations

import logging
from typing import NamedTuple

from .executor import LaunchedStep, LaunchingExecutor
from .live_request import LiveRequest
from .logs import log_event
from .step_plan import StepPlan
from .step_tensors import carried_rows
from .step_work import StepWork


class _Launched(NamedTuple):
    """A step on the device."""

    plan: StepPlan
    step: LaunchedStep
    wanted: list[LiveRequest]  # who gets its tokens


class OverlappedSteps:
    """Steps of an executor that samples where it computes.

    plan n + 1, launch n + 1, wait for the tokens of n, commit n, deliver n: while the host does all but the second, the
    device has a step to compute.
    """

    def __init__(self, executor: LaunchingExecutor, work: StepWork) -> None:
        self._executor = executor
        self._work = work
        self._running: _Launched | None = None

    def step(self) -> bool:
        """Launches the next step, and completes the one before it. False when there was neither."""
        work = self._work
        begun = work.clock()
        plan = work.plan()
        before, self._running = self._running, None
        if plan is None and before is None:
            return False
        failure: Exception | None = None
        executor_seconds = 0.0
        if plan is not None:
            try:
                self._running, executor_seconds = self._launch(plan)
            except Exception as error:  # the engine's own errors: this step's requests end, the loop goes on
                failure = error
        if before is not None:
            self._complete(before, begun, executor_seconds)
        if plan is not None and failure is not None:
            work.fail(plan, failure)
        return True

    def finish(self) -> None:
        """Completes the step that runs, so that the device writes nothing more."""
        before, self._running = self._running, None
        if before is not None:
            self._complete(before, self._work.clock(), 0.0)

    def drop(self) -> None:
        """Waits for the step that runs, and takes nothing from it: the loop itself has failed."""
        before, self._running = self._running, None
        if before is not None:
            try:
                before.step.sampled()
            except Exception as error:
                log_event(logging.ERROR, "step failed", error=repr(error), rows=before.plan.num_tokens)

    def _launch(self, plan: StepPlan) -> tuple[_Launched, float]:
        """Gives the launched step, and seconds in the executor."""
        tensors = self._work.tensors(plan, self._executor.bucket_rule)
        wanted, rows = self._work.wanted(plan)
        carried = carried_rows(plan, tensors)
        begun = self._work.clock()
        step = self._executor.launch(tensors, rows, carried)
        return _Launched(plan, step, wanted), self._work.clock() - begun

    def _complete(self, launched: _Launched, begun: float, executor_seconds: float) -> None:
        """Waits for a step and delivers it. `executor_seconds`: those since `begun` that passed in the executor."""
        work = self._work
        waiting_since = work.clock()
        try:
            sampled = launched.step.sampled()
        except (
            Exception
        ) as error:  # the engine's own errors, as above; what a next step computes of these is dropped
            work.fail(launched.plan, error)
            return
        executor_seconds += work.clock() - waiting_since
        work.deliver(work.commit(launched.plan, launched.wanted, sampled, {}))
        work.record(launched.plan, executor_seconds, work.clock() - begun)
