"""Structured log lines: one JSON object a line, with the request's id where there is one."""

from __future__ import annotations

import json
import logging
from typing import Any

LOGGER = logging.getLogger("slipway")


def log_event(level: int, event: str, **values: Any) -> None:
    """Logs `event` with its values as one line of JSON."""
    if LOGGER.isEnabledFor(level):
        LOGGER.log(level, json.dumps({"event": event, **values}, default=str))
