"""The state of a training run on disk: written beside the old one and moved over it in one step."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from demo.settings import TrainSettings


class ResumeError(RuntimeError):
    """A checkpoint belongs to a run with other settings."""


@dataclass
class Progress:
    """How far a run has come."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_bits_per_byte: float = float("inf")


def write_atomically(path: Path, value: dict[str, Any]) -> None:
    """torch.save to `path`; a kill at any moment leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save(value, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def save_state(
    path: Path,
    settings: TrainSettings,
    progress: Progress,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write all that `load_state` needs to go on as if the run had not ended."""
    write_atomically(
        path,
        {
            "settings": asdict(settings),
            "progress": asdict(progress),
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "torch_rng": torch.get_rng_state(),
        },
    )


def load_state(
    path: Path, settings: TrainSettings, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> Progress:
    """Put a saved run back into `model` and `optimizer`; ResumeError when its settings differ."""
    state = torch.load(path, weights_only=True)
    differing = {
        k: (state["settings"].get(k), v) for k, v in asdict(settings).items() if state["settings"].get(k) != v
    }
    if differing:
        told = ", ".join(f"{key}: {old} there, {new} now" for key, (old, new) in differing.items())
        raise ResumeError(f"{path} is of a run with other settings ({told}): repeat them, or add --restart")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["torch_rng"])
    return Progress(**state["progress"])
