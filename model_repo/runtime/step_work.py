"""What both ways of stepping do with a plan: make it, turn it into tensors and rows, give its tokens back, end it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from .block_tables import BlockTables
from .contract import EngineSpec, Limits, StepTensors
from .executor import BucketRule
from .intake import Intake
from .live_request import LiveRequest
from .live_requests import LiveRequests
from .logs import log_event
from .metrics import Metrics
from .sampler import NO_TOKEN, Row, Sampled
from .scheduler import Scheduler
from .step_log import StepLog, StepRecord, StepRow
from .step_plan import StepPlan
from .step_tensors import step_tensors, with_embeds

NO_NUMBERS = "the model gave logits that are not numbers for this request"


class StepWork:
    """The scheduler, the requests and the figures of one engine, for whoever makes its steps. `clock` gives seconds."""

    def __init__(
        self,
        spec: EngineSpec,
        limits: Limits,
        scheduler: Scheduler,
        intake: Intake,
        live: LiveRequests,
        metrics: Metrics,
        clock: Callable[[], float],
        step_log: StepLog | None,
    ) -> None:
        self.clock = clock
        self.scheduler = scheduler
        self.live = live
        self._intake = intake
        self._metrics = metrics
        self._step_log = step_log
        self._images = spec.image_encoder
        self._tables = BlockTables(limits)

    def plan(self) -> StepPlan | None:
        """Takes what came in since, and plans a step; None when there is nothing to compute now."""
        self.live.take_news(self.clock())
        preempted = self.scheduler.num_preemptions
        plan = self.scheduler.plan()
        preempted = self.scheduler.num_preemptions - preempted
        if preempted:
            self._metrics.count("preemptions", preempted)
        self._intake.count_waiting(len(self.scheduler.waiting))
        return plan

    def tensors(self, plan: StepPlan, rule: BucketRule) -> StepTensors:
        """The step tensors of a plan in flight, padded by `rule`."""
        tensors = step_tensors(plan, self._tables, rule.min_tokens, rule.token_multiple)
        if self._images is None:
            return tensors
        return with_embeds(
            tensors, plan, lambda sequence: self.live[sequence].embeds, self._images.hidden_size
        )

    def wanted(self, plan: StepPlan) -> tuple[list[LiveRequest], list[Row]]:
        """The requests that the plan gives a token, and what each is sampled by."""
        wanted: list[LiveRequest] = []
        rows: list[Row] = []
        for sequence, num_new_tokens, num_logit_rows, num_cached_tokens, _ in plan.entries:
            if num_logit_rows:
                live = self.live[sequence]
                wanted.append(live)
                rows.append(
                    live.sampling_row(num_cached_tokens + num_new_tokens - sequence.num_prompt_tokens)
                )
        return wanted, rows

    def commit(
        self,
        plan: StepPlan,
        wanted: Sequence[LiveRequest],
        sampled: Sequence[Sampled],
        broken: Mapping[LiveRequest, str],
    ) -> list[LiveRequest]:
        """Gives each of `wanted` the token that was sampled for it, unless it has ended; gives those that got one.

        Requests without a token to choose end with 'error', and so do those in `broken` (which the scheduler has taken
        out already), with what went wrong.
        """
        advanced: list[LiveRequest] = []
        errors = dict(broken)
        for live, result in zip(wanted, sampled, strict=True):
            if live.sequence.finish_reason is not None:
                continue
            if result.token_id == NO_TOKEN:
                self.scheduler.finish(live.sequence, "error")  # `commit` passes over what has ended
                errors[live] = NO_NUMBERS
            else:
                live.take(result)
                advanced.append(live)
        self.scheduler.commit(plan, [result.token_id for result in sampled])
        for live, what in errors.items():
            self.live.end(live, "error", what)
        return advanced

    def deliver(self, advanced: Sequence[LiveRequest]) -> None:
        """Sends the text of a committed step's tokens."""
        for live in advanced:
            self.live.deliver(live)

    def record(self, plan: StepPlan, executor_seconds: float, seconds: float) -> None:
        """Counts a step that was computed, delivered text included."""
        self._metrics.count("steps")
        if self._step_log is not None:
            rows = tuple(
                StepRow(entry.sequence.request_id, entry.num_cached_tokens, entry.num_new_tokens)
                for entry in plan.entries
            )
            self._step_log.steps.append(StepRecord(rows, executor_seconds, seconds))

    def fail(self, plan: StepPlan, error: Exception) -> None:
        """Ends the requests of a step that the engine failed in."""
        log_event(logging.ERROR, "step failed", error=repr(error), rows=plan.num_tokens)
        for sequence in self.scheduler.abandon(plan):
            what = f"the engine failed in this request's step: {error}"
            self.live.end(self.live[sequence], "error", what)
