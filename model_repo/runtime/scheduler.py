"""What runs in the next step. Ints in, ints out: no tensors, no clock, no threads.

`plan()` picks sequences and how many tokens of each; the engine computes them; `commit(plan, tokens)` takes what
was sampled. There are no phases: a sequence has pending tokens, and the step computes some or all of them.
Whoever has all of its tokens computed gets a row of logits and one token more. Sequences join and leave between
steps; when blocks run out, the youngest gives its blocks up and computes again later (recomputation).
A step can be planned while the one before it runs: then a sequence's next token is computed before it is known, and
dropped when the sequence turns out to have ended. Whoever ends keeps its blocks until no step in flight writes to them.
Sequences with an encoder have blocks of a second manager for its output. They keep those when they are preempted: the
encoder never runs twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Seq
from operator import itemgetter

from .block_manager import BlockManager
from .contract import Limits
from .output import FinishReason
from .sequence import Sequence
from .step_plan import NOT_CARRIED, PlannedSequence, StepPlan

MIN_CHUNK = 2
"""Fewest tokens of a piece of a prompt."""

MAX_IN_FLIGHT = 2
"""Plans that are neither committed nor abandoned: one that runs, and one that waits for it on the device."""


class Scheduler:
    """Holds the waiting and the running sequences, and the plans in flight (at most MAX_IN_FLIGHT).

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
        self.in_flight: list[StepPlan] = []  # oldest first

    @property
    def is_idle(self) -> bool:
        """Nothing to compute, and no step in flight."""
        return not self.waiting and not self.running and not self.in_flight

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence; how many may wait is the engine's business."""
        self.waiting.append(sequence)

    def plan(self) -> StepPlan | None:
        """The next step, or None when there is nothing to do. Blocks for its tokens are taken here.

        While another plan is in flight nobody is preempted: None, too, where blocks run short or where everybody waits
        for a token, until that plan is committed. Raises RuntimeError while MAX_IN_FLIGHT plans are in flight.
        """
        if len(self.in_flight) == MAX_IN_FLIGHT:
            raise RuntimeError(f"{MAX_IN_FLIGHT} plans are in flight; commit or abandon the first of them")
        budget = self.limits.token_budget
        chosen: dict[Sequence, int] = {}
        pending = {sequence: sequence.num_pending_tokens for sequence in self.running if sequence.is_ready}
        # Fewest pending tokens first: a long prompt takes what the others leave, and never stops them.
        for sequence, num_pending_tokens in sorted(pending.items(), key=itemgetter(1)):
            if not sequence.block_ids:
                continue  # preempted for one before it
            count = _chunk(num_pending_tokens, budget)
            if count and self._make_room(sequence, count, chosen):
                chosen[sequence] = count
                budget -= count
            elif count and self.in_flight:
                self._give_back(chosen)
                return None
        encoded = self._admit(chosen, budget)
        if not chosen:
            return None
        plan = StepPlan(self._entries(chosen), tuple(encoded))
        self.in_flight.append(plan)
        return plan

    def commit(self, plan: StepPlan, tokens: Seq[int]) -> list[Sequence]:
        """Ends the oldest step in flight: `tokens` holds one sampled token for each logit row, in order.

        Gives the sequences that got a token, in order; those with a `finish_reason` have left. Tokens of sequences that
        had ended before are dropped.
        """
        if plan is not next(iter(self.in_flight), None):
            raise RuntimeError("this plan is not in flight, or not the oldest that is")
        if len(tokens) != plan.num_logit_rows:
            raise ValueError(f"{len(tokens)} tokens for {plan.num_logit_rows} rows of logits")
        self._leave_flight(plan)
        sampled = iter(tokens)
        advanced: list[Sequence] = []
        for sequence, num_new_tokens, num_logit_rows, num_cached_tokens, _ in plan.entries:
            token = next(sampled) if num_logit_rows else None
            if sequence.finish_reason is not None:
                self._release_unless_in_flight(sequence)
                continue
            if num_new_tokens >= MIN_CHUNK:
                self._register_full_blocks(sequence, num_cached_tokens + num_new_tokens)
            if token is None:
                continue
            advanced.append(sequence)
            if sequence.append(token) is not None:
                self._remove(sequence)
        return advanced

    def abandon(self, plan: StepPlan) -> list[Sequence]:
        """Ends a step that failed: its sequences leave with finish_reason 'error'. Gives them.

        A plan that was made while it was in flight stays so: what it computes for these sequences is dropped.
        """
        self._leave_flight(plan)
        failed: list[Sequence] = []
        for entry in plan.entries:
            if entry.sequence.finish_reason is None:
                failed.append(entry.sequence)
                self.finish(entry.sequence, "error")
            else:
                self._release_unless_in_flight(entry.sequence)
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

    def _make_room(self, sequence: Sequence, count: int, chosen: dict[Sequence, int]) -> bool:
        """Takes the blocks that `count` more tokens need. Where they run short, the youngest is preempted, in the end
        `sequence` itself; but nobody while a step is in flight.
        """
        length, held = sequence.num_computed_tokens + count, len(sequence.block_ids)
        if length <= held * self.blocks.block_size:
            return True
        missing = self.blocks.blocks_for(length) - held
        while (taken := self.blocks.take(missing)) is None:
            if self.in_flight:
                return False
            victim = next((other for other in reversed(self.running) if other not in chosen), sequence)
            self._preempt(victim)
            if victim is sequence:
                return False
        sequence.block_ids += taken
        return True

    def _give_back(self, chosen: dict[Sequence, int]) -> None:
        """Frees the blocks that were taken for a plan which is not made."""
        for sequence in chosen:
            kept = self.blocks.blocks_for(sequence.num_computed_tokens)
            self.blocks.release(sequence.block_ids[kept:])
            del sequence.block_ids[kept:]

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
            count = _chunk(sequence.num_pending_tokens, budget)
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

    def _entries(self, chosen: dict[Sequence, int]) -> tuple[PlannedSequence, ...]:
        """The plan's entries, oldest first, whose sequences are from now on as they will be after the step."""
        entries: list[PlannedSequence] = []
        num_rows = 0
        for sequence in self.running:
            count = chosen.get(sequence)
            if count is None:
                continue
            cached = sequence.num_computed_tokens
            wanted = int(count == sequence.num_pending_tokens)
            carried = sequence.logit_row if sequence.num_coming_tokens else NOT_CARRIED
            entries.append(PlannedSequence(sequence, count, wanted, cached, carried))
            sequence.num_computed_tokens = cached + count
            sequence.num_steps_in_flight += 1
            if wanted:
                sequence.num_coming_tokens += 1
                sequence.logit_row = num_rows
                num_rows += 1
        return tuple(entries)

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
        self._release_unless_in_flight(sequence)

    def _release_unless_in_flight(self, sequence: Sequence) -> None:
        """Frees what a sequence that has ended holds, or leaves that to the last step that writes to it."""
        if not sequence.num_steps_in_flight:
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
        place = next((index for index, other in enumerate(self.in_flight) if other is plan), None)
        if place is None:
            raise RuntimeError("this plan is not in flight")
        del self.in_flight[place]
        for sequence, _, num_logit_rows, _, _ in plan.entries:
            sequence.num_steps_in_flight -= 1
            sequence.num_coming_tokens -= num_logit_rows

    def _register_full_blocks(self, sequence: Sequence, num_computed_tokens: int) -> None:
        """Offers the blocks of so many computed tokens to other prompts. Called after chunks only: what decoding wrote
        is rounded otherwise than a prompt's chunk would be, and a request's bits would depend on who came before it.
        """
        size = self.blocks.block_size
        for index in range(sequence.num_registered_blocks, num_computed_tokens // size):
            before = sequence.block_ids[index - 1] if index else None
            content = sequence.content(index * size, (index + 1) * size)
            self.blocks.register(sequence.block_ids[index], before, content)
            sequence.num_registered_blocks = index + 1


def _chunk(num_pending_tokens: int, budget: int) -> int:
    """Tokens of a sequence that a step with room for `budget` computes.

    A prompt is never cut so that a chunk is a single token: one row takes attention's decode kernel, which
    rounds otherwise. Which kernel computes a row then depends on the sequence alone, and so do its bits.
    """
    if num_pending_tokens <= budget:
        return num_pending_tokens
    count = min(budget, num_pending_tokens - MIN_CHUNK)
    return count if count >= MIN_CHUNK else 0
