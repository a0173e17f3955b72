"""An executor that launches, made of one that gives logits: a thread stands in for the device."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace

import numpy as np

from model_repo.runtime.contract import Int32Array, StepTensors
from model_repo.runtime.executor import BucketRule, Executor
from model_repo.runtime.sampler import Row, Sampled, sample

_Work = tuple[StepTensors, Sequence[Row], Int32Array | None, "Launched"]


class Launched:
    """A step in the thread's queue. `taken`: whether its tokens were asked for."""

    def __init__(self) -> None:
        self.future: Future[list[Sampled]] = Future()
        self.taken = False

    def sampled(self) -> list[Sampled]:
        assert not self.taken, "a step was asked twice"
        self.taken = True
        return self.future.result(60)


class ThreadedExecutor:
    """Computes launched steps in order, in a thread of its own, and samples them there.

    `num_carried` counts tokens that were not known when their step was launched; `most_launched` the steps that were
    launched and not asked for, at most.
    """

    def __init__(self, inner: Executor) -> None:
        self._inner = inner
        self._queue: queue.SimpleQueue[_Work] = queue.SimpleQueue()
        self._open: list[Launched] = []
        self._before: list[Sampled] = []  # of the step before, on the thread
        self.num_carried = 0
        self.num_launched = 0
        self.most_launched = 0
        threading.Thread(target=self._run, daemon=True).start()

    @property
    def bucket_rule(self) -> BucketRule:
        return self._inner.bucket_rule

    @property
    def num_open(self) -> int:
        """Steps that were launched and not asked for."""
        return sum(not launched.taken for launched in self._open)

    def launch(self, step: StepTensors, rows: Sequence[Row], carried: Int32Array | None) -> Launched:
        self._open = [launched for launched in self._open if not launched.taken]
        assert len(self._open) < 2, "two steps are launched and not asked for"
        if carried is not None:
            assert carried.dtype == np.int32
            assert carried.shape == step.input_ids.shape
            assert (step.input_ids[carried >= 0] == 0).all()
            self.num_carried += int((carried >= 0).sum())
        launched = Launched()
        self._open.append(launched)
        self.num_launched += 1
        self.most_launched = max(self.most_launched, len(self._open))
        self._queue.put((step, list(rows), carried, launched))
        return launched

    def _run(self) -> None:
        while True:
            step, rows, carried, launched = self._queue.get()
            try:
                sampled = self._compute(step, rows, carried)
            except Exception as error:
                self._before = []
                launched.future.set_exception(error)
            else:
                self._before = sampled
                launched.future.set_result(sampled)

    def _compute(self, step: StepTensors, rows: Sequence[Row], carried: Int32Array | None) -> list[Sampled]:
        if carried is not None:
            # A row without a token (no numbers, or a failed step) leaves the 0: nobody reads the result.
            tokens = [max(result.token_id, 0) for result in self._before]
            ids = step.input_ids.copy()
            for place in np.flatnonzero(carried >= 0):
                ids[place] = tokens[carried[place]] if tokens else 0
            step = replace(step, input_ids=ids)
        logits = self._inner.run(step)
        return sample(logits[: len(rows)], list(rows)) if rows else []
