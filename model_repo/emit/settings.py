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

    @property
    def capture_folder(self) -> str | None:
        """Where the server writes requests' tokens; None where it keeps none."""

    @property
    def capture_bytes(self) -> int:
        """Size that each of those files grows to at most."""


def capture_parameters(serve: ServeSettings) -> dict[str, str]:
    """The parameters of a Triton model that may keep its requests (`backends.startup.capture`)."""
    return {"capture_folder": serve.capture_folder or "", "capture_bytes": str(serve.capture_bytes)}
