"""The runtime's log lines on the server's standard error: one JSON object a line, with time and model."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

from ..runtime.logs import LOGGER


class _JsonFormatter(logging.Formatter):
    """Adds time, level and model to events, which are JSON objects already."""

    def __init__(self, model: str) -> None:
        super().__init__()
        self._model = model

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        return json.dumps(
            {
                "time": time,
                "level": record.levelname.lower(),
                "model": self._model,
                **json.loads(record.getMessage()),
            }
        )


def to_standard_error(model: str) -> None:
    """Logs events of this process from now on."""
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonFormatter(model))
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False
