"""What runs in the next step. Ints in, ints out: no tensors, no clock, no threads.

`plan()` picks sequences and how many tokens of each; the engine computes them; `commit(plan, tokens)` takes what
was sampled. There are no phases: a sequence has pending tokens, and the step computes some or all of them.
Whoever has all of its tokens computed gets a row of logits and one token more. Sequences join and leave between
steps; when blocks run out, the youngest gives its blocks up and computes again later (recomputation).
Sequences with an encoder have blocks of a second manager for its output. They keep those when they are preempted: the
encoder never runs twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Seq
from typing import NamedTuple

from .block_manager import BlockManager
from .contract import Limits
from .output import FinishReason
from .sequence import Sequence

MIN_CHUNK = 2
"""Fewest tokens of a piece of a prompt."""


class PlannedSequence(NamedTuple):
    """One sequence's part of a step."""

    sequence: Sequence
    num_new_tokens: int  # tokens [num_computed_tokens, + num_new_tokens) are computed in this step
    num_logit_rows: int  # 0 while a prompt is unfinished, else 1: the last row's logits


class StepPlan(NamedTuple):
    """One step: its sequences in the order of their rows, and those of them whose encoder runs before it."""

    entries: tuple[PlannedSequence, ...]
    encoded: tuple[Sequence, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Rows of the step."""
        return sum(entry.num_new_tokens for entry in self.entries)

    @property
    def num_logit_rows(self) -> int:
        """Rows whose logits are wanted; may be 0 in a step of unfinished prompts."""
        return sum(entry.num_logit_rows for entry in self.entries)


class Scheduler:
    """Holds the waiting and the running sequences. One plan may be in flight at a time.

    `cross_blocks`: blocks of the KV group CROSS, for sequences with an encoder.
    """

    def __init__(
        self, limits: Limits, blocks: BlockManager, cross_blocks: BlockManager | None = None
    ) -> None:
        self.limits = limits
        self.blocks = blocks
        self.cross_blocks = cross_blocks or BlockManager(0, blocks.block_size)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # oldest first
        self.num_preemptions = 0
        self._in_flight: StepPlan | None = None
        self._ended_in_flight: list[Sequence] = []  # ended while their step runs: blocks are freed after it

    @property
    def is_idle(self) -> bool:
        """Nothing to compute."""
        return not self.waiting and not self.running

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence; how many may wait is the engine's business."""
        self.waiting.append(sequence)

    def plan(self) -> StepPlan | None:
        """The next step, or None when there is nothing to do. Blocks for its tokens are taken here.

        Raises RuntimeError while another plan is in flight.
        """
        if self._in_flight is not None:
            raise RuntimeError("a plan is in flight; commit or abandon it first")
        budget = self.limits.token_budget
        chosen: dict[Sequence, int] = {}
        # Fewest pending tokens first: a long prompt takes what the others leave, and never stops them.
        for sequence in sorted(self.running, key=lambda sequence: sequence.num_pending_tokens):
            if sequence not in self.running:
                continue  # preempted for one before it
            count = self._chunk(sequence, budget)
            if count and self._make_room(sequence, count, chosen):
                chosen[sequence] = count
                budget -= count
        encoded = self._admit(chosen, budget)
        if not chosen:
            return None
        entries = tuple(
            PlannedSequence(sequence, chosen[sequence], int(chosen[sequence] == sequence.num_pending_tokens))
            for sequence in self.running
            if sequence in chosen
        )
        self._in_flight = StepPlan(entries, tuple(encoded))
        return self._in_flight

    def commit(self, plan: StepPlan, tokens: Seq[int]) -> list[Sequence]:
        """Ends the step: `tokens` holds one sampled token for each logit row, in order.

        Gives the sequences that got a token, in order; those with a `finish_reason` have left.
        """
        self._leave_flight(plan)
        if len(tokens) != plan.num_logit_rows:
            raise ValueError(f"{len(tokens)} tokens for {plan.num_logit_rows} rows of logits")
        sampled = iter(tokens)
        advanced: list[Sequence] = []
        for sequence, num_new_tokens, num_logit_rows in plan.entries:
            token = next(sampled) if num_logit_rows else None
            if sequence.finish_reason is not None:
                continue  # cancelled while the step ran
            sequence.num_computed_tokens += num_new_tokens
            if num_new_tokens >= MIN_CHUNK:
                self._register_full_blocks(sequence)
            if token is None:
                continue
            advanced.append(sequence)
            if sequence.append(token) is not None:
                self._remove(sequence)
        self._free_ended()
        return advanced

    def abandon(self, plan: StepPlan) -> list[Sequence]:
        """Ends a step that failed: its sequences leave with finish_reason 'error'. Gives them."""
        self._leave_flight(plan)
        failed = [entry.sequence for entry in plan.entries if entry.sequence.finish_reason is None]
        for sequence in failed:
            self.finish(sequence, "error")
        self._free_ended()
        return failed

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """Ends a waiting or running sequence from outside (cancelled, timeout, stop string). Safe when it ended."""
        ended_before = sequence.finish_reason is not None
        if sequence in self.waiting:
            self.waiting.remove(sequence)
            self._release_source(sequence)
        elif sequence in self.running:
            self._remove(sequence)
        if not ended_before:
            sequence.finish_reason = reason

    def expired(self, now: float) -> list[Sequence]:
        """Sequences whose deadline has passed."""
        alive = [*self.running, *self.waiting]
        return [sequence for sequence in alive if sequence.deadline is not None and sequence.deadline <= now]

    def _chunk(self, sequence: Sequence, budget: int) -> int:
        """Tokens of `sequence` that this step computes.

        A prompt is never cut so that a chunk is a single token: one row takes attention's decode kernel, which
        rounds otherwise. Which kernel computes a row then depends on the sequence alone, and so do its bits.
        """
        pending = sequence.num_pending_tokens
        if pending <= budget:
            return pending
        count = min(budget, pending - MIN_CHUNK)
        return count if count >= MIN_CHUNK else 0

    def _make_room(self, sequence: Sequence, count: int, chosen: dict[Sequence, int]) -> bool:
        """Takes the blocks that `count` more tokens need; preempts the youngest, in the end `sequence` itself."""
        total = self.blocks.blocks_for(sequence.num_computed_tokens + count)
        while (taken := self.blocks.take(max(total - len(sequence.block_ids), 0))) is None:
            victim = next((other for other in reversed(self.running) if other not in chosen), sequence)
            self._preempt(victim)
            if victim is sequence:
                return False
        sequence.block_ids += taken
        return True

    def _admit(self, chosen: dict[Sequence, int], budget: int) -> list[Sequence]:
        """Lets waiting sequences in while tokens, places and blocks for their whole prompt last.

        Gives those whose encoder is to run: one a step, since all other sequences wait for it.
        """
        encoded: list[Sequence] = []
        while self.waiting and budget and len(self.running) < self.limits.max_batch:
            sequence = self.waiting[0]
            encodes = bool(sequence.num_source_positions) and not sequence.source_block_ids
            source_blocks = self.cross_blocks.blocks_for(sequence.num_source_positions) if encodes else 0
            if source_blocks > self.cross_blocks.num_free or (encodes and encoded):
                return encoded
            # The last token is always computed, for its logits, and not alone (see _chunk).
            shared = self.blocks.match(
                sequence.content(0, sequence.num_tokens), sequence.num_tokens - MIN_CHUNK
            )
            needed = self.blocks.blocks_for(sequence.num_tokens) - len(shared)
            self.blocks.share(shared)
            sequence.num_computed_tokens = len(shared) * self.blocks.block_size
            count = self._chunk(sequence, budget)
            if not count or needed > self.blocks.num_free:
                self.blocks.release(shared)
                sequence.num_computed_tokens = 0
                return encoded
            sequence.block_ids = list(shared)
            sequence.num_registered_blocks = len(shared)
            self.waiting.popleft()
            self.running.append(sequence)
            total = self.blocks.blocks_for(sequence.num_computed_tokens + count)
            taken = self.blocks.take(total - len(shared))
            assert taken is not None, "room for the whole prompt was checked"
            sequence.block_ids += taken
            chosen[sequence] = count
            budget -= count
            if encodes:
                sequence.source_block_ids = self.cross_blocks.take(source_blocks) or []
                encoded.append(sequence)
        return encoded

    def _preempt(self, sequence: Sequence) -> None:
        """Takes a running sequence's blocks; it waits, first in line, and computes its tokens again."""
        self.running.remove(sequence)
        self._release_blocks(sequence)
        sequence.num_computed_tokens = 0
        sequence.num_preemptions += 1
        self.num_preemptions += 1
        self.waiting.appendleft(sequence)

    def _remove(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        plan = self._in_flight
        if plan is not None and any(entry.sequence is sequence for entry in plan.entries):
            self._ended_in_flight.append(sequence)  # the step still writes to its blocks
        else:
            self._release(sequence)

    def _release(self, sequence: Sequence) -> None:
        self._release_blocks(sequence)
        self._release_source(sequence)

    def _release_blocks(self, sequence: Sequence) -> None:
        self.blocks.release(sequence.block_ids)
        sequence.block_ids = []
        sequence.num_registered_blocks = 0

    def _release_source(self, sequence: Sequence) -> None:
        self.cross_blocks.release(sequence.source_block_ids)
        sequence.source_block_ids = []

    def _leave_flight(self, plan: StepPlan) -> None:
        if plan is not self._in_flight:
            raise RuntimeError("this plan is not in flight")
        self._in_flight = None

    def _free_ended(self) -> None:
        for sequence in self._ended_in_flight:
            self._release(sequence)
        self._ended_in_flight.clear()

    def _register_full_blocks(self, sequence: Sequence) -> None:
        """Offers the blocks to other prompts. Called after chunks only: what decoding wrote is rounded otherwise
        than a prompt's chunk would be, and a request's bits would depend on who came before it.
        """
        size = self.blocks.block_size
        for index in range(sequence.num_registered_blocks, sequence.num_computed_tokens // size):
            before = sequence.block_ids[index - 1] if index else None
            content = sequence.content(index * size, (index + 1) * size)
            self.blocks.register(sequence.block_ids[index], before, content)
            sequence.num_registered_blocks = index + 1
