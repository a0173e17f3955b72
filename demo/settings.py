"""What one training run is defined by, and the schedules that follow from how far it has come."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class TrainSettings:
    """Everything that decides the result of a run; a checkpoint resumes only under equal settings."""

    steps: int = 7200
    minutes: float | None = None  # ends the run (and completes its schedules) after this much training time
    batch_tokens: int = 2048
    contexts: tuple[tuple[float, int], ...] = ((0.0, 256), (0.6, 512), (0.9, 1024))
    learning_rate: float = 2e-3
    warmup_steps: int = 200
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    seed: int = 0

    def progress(self, step: int, seconds: float) -> float:
        """How far the run has come, 0 to 1: by steps or by time, whichever is further."""
        by_time = seconds / (60.0 * self.minutes) if self.minutes else 0.0
        return min(1.0, max(step / self.steps, by_time))

    def rate_at(self, step: int, progress: float) -> float:
        """Learning rate: linear warm-up by steps, times a cosine from 1 to 0 by progress."""
        warmup = min(1.0, (step + 1) / self.warmup_steps)
        return self.learning_rate * warmup * 0.5 * (1.0 + math.cos(math.pi * progress))

    def context_at(self, progress: float) -> int:
        """Tokens a row: short while the model learns words, longer towards the end."""
        return [context for begin, context in self.contexts if progress >= begin][-1]
