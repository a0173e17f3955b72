"""One step after the other: each is planned when the one before it has been delivered."""

from __future__ import annotations

from .executor import Executor
from .live_request import LiveRequest
from .sampler import sample
from .step_plan import StepPlan
from .step_work import StepWork


class SynchronousSteps:
    """Steps of an executor that gives logits; the host samples."""

    def __init__(self, executor: Executor, work: StepWork) -> None:
        self._executor = executor
        self._work = work

    def step(self) -> bool:
        """Makes one step. False when there was nothing to compute."""
        work = self._work
        begun = work.clock()
        plan = work.plan()
        if plan is None:
            return False
        try:
            executor_seconds, advanced = self._compute(plan)
        except Exception as error:  # the engine's own errors: this step's requests end, the loop goes on
            work.fail(plan, error)
            return True
        work.deliver(advanced)
        work.record(plan, executor_seconds, work.clock() - begun)
        return True

    def finish(self) -> None:
        """Nothing runs between two steps."""

    def drop(self) -> None:
        """Nothing runs between two steps."""

    def _compute(self, plan: StepPlan) -> tuple[float, list[LiveRequest]]:
        """Runs the engine, samples and commits. Gives seconds in the engine and who got a token."""
        work = self._work
        broken = self._encode(plan)
        tensors = work.tensors(plan, self._executor.bucket_rule)
        begun = work.clock()
        logits = self._executor.run(tensors)
        executor_seconds = work.clock() - begun
        wanted, rows = work.wanted(plan)
        sampled = sample(logits[: len(rows)], rows) if rows else []
        return executor_seconds, work.commit(plan, wanted, sampled, broken)

    def _encode(self, plan: StepPlan) -> dict[LiveRequest, str]:
        """Runs the encoders that the step needs. Gives the requests whose encoder failed, with what went wrong."""
        broken: dict[LiveRequest, str] = {}
        for sequence in plan.encoded:
            live = self._work.live[sequence]
            source = live.request.encoder_input
            assert source is not None, "checked at submission"
            try:
                self._executor.encode(source, sequence.source_block_ids)
            except Exception as error:  # the engine's own errors
                self._work.scheduler.finish(sequence, "error")
                broken[live] = f"the encoder failed on this request's input: {error}"
        return broken
