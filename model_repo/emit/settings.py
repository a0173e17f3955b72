"""What a recipe says about serving, as far as an emitted repository needs it."""

from __future__ import annotations

from typing import Protocol


class ServeSettings(Protocol):
    """The `serve` section of a recipe."""

    @property
    def max_queue(self) -> int:
        """Requests that may wait; the next one is answered 'busy'."""

    @property
    def default_max_tokens(self) -> int:
        """Tokens generated when a request does not say."""

    @property
    def request_timeout_seconds(self) -> float:
        """Deadline of a request that sets none."""
