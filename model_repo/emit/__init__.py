"""Writes Triton model repositories: typed configs, the files of each model, published in one rename."""

from __future__ import annotations

from .repository import emit
from .settings import ServeSettings

__all__ = ["ServeSettings", "emit"]
