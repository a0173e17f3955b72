"""One request on its way through the engine, as the scheduler sees it: ints and lists of ints."""

from __future__ import annotations

from dataclasses import dataclass, field

from .output import FinishReason


@dataclass(eq=False)
class Sequence:
    """Prompt and completion tokens, how many of them are in the cache, and the blocks that hold them.

    `source_block_ids` hold the `num_source_positions` encoder positions that cross-attention sees (0: none), from
    when the encoder runs until the sequence ends, preempted or not.

    `prompt_content`: what blocks of the prompt are known by where that is not its tokens alone (images).
    `waits_for_token`: the token after one that a step in flight samples cannot be planned yet, because what it is
    sampled by depends on all tokens before it (repetition penalties).

    `token_ids` grows by one token a step once all of it is computed. `block_ids[i]` holds positions
    i * block_size to (i + 1) * block_size - 1; the list grows, and another one takes its place when the blocks are
    given up. `num_registered_blocks` of them are known to prefix sharing.

    Steps in flight count as done in `num_computed_tokens`. The tokens that they sample are not in `token_ids` yet:
    they are `num_coming_tokens`, the last of them from row `logit_row` of its plan's logits.
    """

    request_id: str
    token_ids: list[int]
    max_new_tokens: int
    end_token_ids: frozenset[int] = frozenset()
    deadline: float | None = None
    num_prompt_tokens: int = field(init=False)
    num_computed_tokens: int = 0
    num_coming_tokens: int = 0
    num_steps_in_flight: int = 0
    logit_row: int = 0
    num_preemptions: int = 0
    block_ids: list[int] = field(default_factory=list)
    num_registered_blocks: int = 0
    finish_reason: FinishReason | None = None
    num_source_positions: int = 0
    source_block_ids: list[int] = field(default_factory=list)
    prompt_content: list[int] | None = None
    waits_for_token: bool = False

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.token_ids)

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and completion so far."""
        return len(self.token_ids)

    @property
    def num_pending_tokens(self) -> int:
        """Tokens, known or coming, that no step has computed or computes; at least one while the sequence is alive."""
        return len(self.token_ids) + self.num_coming_tokens - self.num_computed_tokens

    @property
    def num_completion_tokens(self) -> int:
        """Tokens generated so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def is_ready(self) -> bool:
        """Whether another step can be planned: not after a token that is coming and is the last or is waited for."""
        coming = self.num_coming_tokens
        if not coming:
            return True
        return not self.waits_for_token and self.num_completion_tokens + coming < self.max_new_tokens

    def content(self, start: int, stop: int) -> list[int]:
        """What the cache holds at positions start to stop - 1, as ints: equal where keys and values are."""
        known = self.prompt_content
        if known is None:
            return self.token_ids[start:stop]
        return [*known[start:stop], *self.token_ids[max(start, len(known)) : stop]]

    def append(self, token_id: int) -> FinishReason | None:
        """Takes a generated token; gives, and sets, `finish_reason` when it is the last."""
        self.token_ids.append(token_id)
        if token_id in self.end_token_ids:
            self.finish_reason = "stop"
        elif self.num_completion_tokens >= self.max_new_tokens:
            self.finish_reason = "length"
        return self.finish_reason
