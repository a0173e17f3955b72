"""The engine loop: requests in from any thread, steps one after the other, text out through sinks."""

from __future__ import annotations

import dataclasses
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .block_manager import BlockManager
from .contract import EngineSpec
from .errors import BadInput
from .executor import Executor, LaunchingExecutor
from .intake import Intake
from .live_request import LiveRequest, Sink
from .live_requests import LiveRequests
from .logs import log_event
from .metrics import Metrics
from .output import Completion, Output
from .overlapped_steps import OverlappedSteps
from .prompt_embeds import PromptEmbeds
from .request import Request, SamplingParams
from .request_checks import blank_input, check_request
from .scheduler import Scheduler
from .sequence import Sequence as ScheduledSequence
from .step_log import StepLog
from .step_work import StepWork
from .synchronous_steps import SynchronousSteps

if TYPE_CHECKING:  # a loop over another executor needs neither tokenizers nor ONNX Runtime
    from .tokenizer import Tokenizer

DEFAULT_MAX_QUEUE = 128


class Engine:
    """One loaded engine and its requests.

    `submit` and `cancel` may be called from any thread. Steps are made either by whoever calls `step` (or
    `generate`), or by a thread of the engine's own between `start` and `stop`; never by both.
    """

    def __init__(
        self,
        executor: Executor | LaunchingExecutor,
        spec: EngineSpec,
        tokenizer: Tokenizer | None = None,
        *,
        num_blocks: int | None = None,
        max_queue: int = DEFAULT_MAX_QUEUE,
        share_prefixes: bool = True,
        clock: Callable[[], float] = time.monotonic,
        step_log: StepLog | None = None,
    ) -> None:
        self.spec = spec
        self.tokenizer = tokenizer
        self.limits = spec.decoder_limits
        self.metrics = Metrics()
        self._executor = executor
        self._clock = clock
        if num_blocks is not None:
            self.limits = dataclasses.replace(self.limits, num_blocks=num_blocks)
        # Of an encoder-decoder, what the same tokens leave in the cache depends on the encoder's input.
        share_prefixes = share_prefixes and spec.encoder is None
        self._blocks = BlockManager(self.limits.num_blocks, self.limits.block_size, share_prefixes)
        cross_blocks = BlockManager(
            self.limits.num_cross_blocks, self.limits.block_size, share_prefixes=False
        )
        self._scheduler = Scheduler(self.limits, self._blocks, cross_blocks)
        self._intake = Intake(max_queue)
        self._live = LiveRequests(self._scheduler, self._intake, self.metrics, clock)
        work = StepWork(
            spec, self.limits, self._scheduler, self._intake, self._live, self.metrics, clock, step_log
        )
        self._steps: SynchronousSteps | OverlappedSteps
        if isinstance(executor, LaunchingExecutor):
            if spec.encoder is not None:
                raise BadInput(
                    f"engine {spec.name!r} has an encoder, which executors that sample on the device do not run; "
                    "give it one that gives logits"
                )
            self._steps = OverlappedSteps(executor, work)
        else:
            self._steps = SynchronousSteps(executor, work)
        self._thread: threading.Thread | None = None

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        threads: int | None = None,
        num_blocks: int | None = None,
        max_queue: int = DEFAULT_MAX_QUEUE,
        share_prefixes: bool = True,
        verify: bool = True,
        step_log: StepLog | None = None,
    ) -> Engine:
        """The engine in `folder`, which holds engine.json and the files that it lists.

        `threads` and `num_blocks` take the place of what was built in. Raises BadInput when a file is missing, has
        changed since it was built (unless `verify` is off), or is not a decoder, and where this machine cannot run it.
        """
        from .engine_files import EngineFiles
        from .executors import decoder_executor

        files = EngineFiles.read(folder, verify)
        limits = files.spec.decoder_limits
        if num_blocks is not None:
            limits = dataclasses.replace(limits, num_blocks=num_blocks)
        executor = decoder_executor(
            folder,
            files.spec,
            limits.num_blocks,
            files.spec.threads if threads is None else threads,
        )
        return cls(
            executor,
            files.spec,
            files.tokenizer,
            num_blocks=num_blocks,
            max_queue=max_queue,
            share_prefixes=share_prefixes,
            step_log=step_log,
        )

    # ------------------------------------------------------------------ requests, from any thread

    def submit(self, request: Request, sink: Sink) -> None:
        """Queues a request. `sink` gets its outputs, on the loop's thread; the last has a finish_reason.

        Raises BadInput when the prompt does not fit or names tokens that the model does not have, Busy when the
        queue is full or the engine drains.
        """
        self._check(request)
        room = self.limits.max_length - len(request.prompt_ids)
        sampling = request.sampling
        ends = set(sampling.stop_token_ids)
        if not sampling.ignore_eos:
            ends |= set(self.spec.end_token_ids)
        now = self._clock()
        sequence = ScheduledSequence(
            request.request_id,
            list(request.prompt_ids),
            max_new_tokens=min(sampling.max_tokens, room),
            end_token_ids=frozenset(ends),
            deadline=None if request.timeout_seconds is None else now + request.timeout_seconds,
            waits_for_token=sampling.repetition_penalty != 1.0,
        )
        if self.spec.encoder is not None and request.encoder_input is not None:
            sequence.num_source_positions = self.spec.encoder.num_positions(request.encoder_input.shape)
        embeds = None
        if self.spec.image_encoder is not None and request.prompt_embeds is not None:
            placeholder = self.spec.image_encoder.placeholder_id
            embeds = PromptEmbeds.of(request.prompt_ids, request.prompt_embeds, placeholder)
            sequence.prompt_content = embeds.content(request.prompt_ids)
        seed = secrets.randbits(64) if sampling.seed is None else sampling.seed
        self._intake.put(LiveRequest(request, sequence, sink, seed, now, self.tokenizer, embeds))

    def cancel(self, request_id: str) -> None:
        """Ends a request wherever it is; its sink gets finish_reason 'cancelled'. Unknown ids are ignored."""
        self._intake.cancel(request_id)

    def stats(self) -> dict[str, float]:
        """Gauges now (waiting, running, kv_blocks_used, kv_blocks_total) and all counters so far."""
        return {
            "waiting": self._intake.num_waiting,
            "running": len(self._scheduler.running),
            "kv_blocks_used": self._blocks.num_used,
            "kv_blocks_total": self._blocks.num_blocks,
            **self.metrics.counters(),
        }

    # ------------------------------------------------------------------ the loop

    def step(self) -> bool:
        """Makes one step, or with an executor that launches: launches one and completes the one before it.

        False when there was nothing to compute.
        """
        return self._steps.step()

    def generate(self, requests: Sequence[Request], on_output: Sink | None = None) -> list[Completion]:
        """Runs requests to their ends, together, on the calling thread; gives completions in the order given.

        `on_output` sees every output as it comes; one that raises ends that output's request as 'cancelled'.
        Not while the engine's own thread runs. Raises what `submit` raises, before anything is computed.
        """
        if self._thread is not None:
            raise RuntimeError("the engine's own thread runs; use submit")
        outputs: dict[str, list[Output]] = {}
        for request in requests:
            self._check(request)
            if request.request_id in outputs:
                raise BadInput(f"two requests have the id {request.request_id!r}; give each one of its own")
            outputs[request.request_id] = []
        waiting = deque(requests)
        while waiting or self._has_work():
            while waiting and self._intake.num_waiting < self._intake.max_queue:
                request = waiting.popleft()
                self.submit(request, _keeper(outputs[request.request_id], on_output))
            self.step()
        return [Completion.of(request.prompt_ids, outputs[request.request_id]) for request in requests]

    def warm_up(self) -> None:
        """Computes a short request, so that the first client does not wait for memory and threads."""
        images = self.spec.image_encoder
        placeholder = -1 if images is None else images.placeholder_id
        ids = (token % self.spec.vocab_size for token in range(min(32, self.limits.max_length - 2)))
        prompt = tuple(token for token in ids if token != placeholder)
        sampling = SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True)
        encoder = self.spec.encoder
        source = None if encoder is None else blank_input(encoder)
        self.generate([Request("warm-up", prompt, sampling, encoder_input=source)])

    def start(self) -> None:
        """Starts the loop's own thread. Raises RuntimeError when it runs already or was stopped."""
        if self._thread is not None or self._intake.stopping:
            raise RuntimeError("an engine is started once")
        self._thread = threading.Thread(target=self._run, name="slipway-engine", daemon=True)
        self._thread.start()

    def drain(self, timeout: float | None = None) -> bool:
        """Takes no more requests and waits for the ones that are in. False when `timeout` seconds were too few."""
        return self._intake.drain(timeout)

    def stop(self) -> None:
        """Ends the thread; what still runs ends as 'cancelled'."""
        self._intake.stop()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._steps.finish()
        self._live.take_news(self._clock())
        self._live.end_all("cancelled")

    # ------------------------------------------------------------------ inside

    def _run(self) -> None:
        while not self._intake.stopping:
            try:
                if self.step():
                    continue
            except Exception as error:
                self._break_down(error)
                return
            self._intake.wait_for_news(self._seconds_to_deadline())

    def _has_work(self) -> bool:
        return self._intake.has_submitted or not self._scheduler.is_idle

    def _seconds_to_deadline(self) -> float | None:
        deadlines = [s.deadline for s in self._scheduler.waiting if s.deadline is not None]
        return max(min(deadlines) - self._clock(), 0.0) if deadlines else None

    def _check(self, request: Request) -> None:
        check_request(request, self.spec, self.limits, self.tokenizer is not None)

    def _break_down(self, error: Exception) -> None:
        """A fault of the loop itself: all requests end with 'error', and no more are taken."""
        log_event(logging.CRITICAL, "engine loop failed", error=repr(error))
        self._intake.stop()
        self._live.break_down(f"the engine loop failed: {error!r}")
        self._steps.drop()


def _keeper(outputs: list[Output], on_output: Sink | None) -> Sink:
    """A sink that keeps outputs, and shows each to `on_output`."""

    def keep(output: Output) -> None:
        outputs.append(output)
        if on_output is not None:
            on_output(output)

    return keep
