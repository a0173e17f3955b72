"""What one step computes: the scheduler makes plans, the loop turns them into tensors and gives the results back."""

from __future__ import annotations

from typing import NamedTuple

from .sequence import Sequence

NOT_CARRIED = -1


class PlannedSequence(NamedTuple):
    """One sequence's part of a step: tokens [num_cached_tokens, + num_new_tokens) are computed in it."""

    sequence: Sequence
    num_new_tokens: int
    num_logit_rows: int  # 0 while a prompt is unfinished, else 1: the last row's logits
    num_cached_tokens: int  # in the cache when the step begins
    carried_row: int = NOT_CARRIED
    """Where the one token is not known yet: the row of logits of the plan before this one that it is sampled from."""


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
