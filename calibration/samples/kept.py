"""The chosen samples as a file: what was calibrated on can be looked at, and used again without its source."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from model_repo.runtime.errors import BadInput

from .base import Item

TOKENS_FILE = "calibration.jsonl"
"""A line {"input_ids": [...]} a sample: data that `slipway calibrate --data` reads too."""
ARRAYS_FILE = "calibration.npz"
"""Arrays "<sample>.<input>"."""


def write_samples(items: tuple[Item, ...], folder: Path, prefix: str = "") -> tuple[str, Path]:
    """Writes samples to `folder`; gives the file's name and its path, whose name begins with `prefix`."""
    if isinstance(items[0], tuple):
        path = folder / f"{prefix}{TOKENS_FILE}"
        lines = (json.dumps({"input_ids": item}, separators=(",", ":")) for item in items)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return TOKENS_FILE, path
    path = folder / f"{prefix}{ARRAYS_FILE}"
    arrays = {
        f"{place}.{name}": array
        for place, item in enumerate(items)
        if not isinstance(item, tuple)
        for name, array in item.items()
    }
    with path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes them for its own options
    return ARRAYS_FILE, path


def read_samples(folder: Path) -> tuple[Item, ...]:
    """The samples that a calibration left in `folder`. Raises BadInput when there are none."""
    tokens, arrays = folder / TOKENS_FILE, folder / ARRAYS_FILE
    if tokens.is_file():
        lines = tokens.read_text(encoding="utf-8").splitlines()
        return tuple(tuple(json.loads(line)["input_ids"]) for line in lines)
    if not arrays.is_file():
        raise BadInput(f"{folder} holds no calibration samples; run `slipway calibrate {folder}` first")
    with np.load(arrays) as file:
        items: dict[int, dict[str, np.ndarray]] = {}
        for key in file.files:
            place, _, name = key.partition(".")
            items.setdefault(int(place), {})[name] = file[key]
    return tuple(items[place] for place in sorted(items))
