"""Checkpoint folders for tests: opening them, and ways to spoil them."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from transformers import LlamaForCausalLM

from pipeline.recipe import SourceRecipe
from pipeline.sources import Source, open_source

WEIGHTS = "model.safetensors"
Spoil = Callable[[Path], None]
"""Something done to a folder."""


def opened(folder: Path, **recipe: Any) -> Source:
    return open_source(str(folder), SourceRecipe(str(folder), **recipe))


def edit(path: Path, **changes: Any) -> None:
    """Changes keys of a JSON file; None takes a key out."""
    data = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}), "utf-8")


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", **changes)


def text(name: str, text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_text(text, "utf-8")

    return write


def truncated(keep: float) -> Callable[[Path], None]:
    def truncate(folder: Path) -> None:
        path = folder / WEIGHTS
        os.truncate(path, int(path.stat().st_size * keep))

    return truncate


def header(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Rewrites the header of the weights, with its length."""

    def rewrite(folder: Path) -> None:
        data = (folder / WEIGHTS).read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        header = change(data[8 : 8 + length])
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header + data[8 + length :])

    return rewrite


def appended(folder: Path) -> None:
    with (folder / WEIGHTS).open("ab") as file:
        file.write(b"more")


def sharded(folder: Path) -> None:
    """Splits the weights over two files with an index, as save_pretrained does for large models."""
    model = LlamaForCausalLM.from_pretrained(folder)
    (folder / WEIGHTS).unlink()
    tensors = {
        name: value.contiguous() for name, value in model.state_dict().items() if name != "lm_head.weight"
    }
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[:5], "model-00002-of-00002.safetensors": names[5:]}
    for file, held in shards.items():
        save_file({name: tensors[name] for name in held}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, held in shards.items() for name in held}
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index), "utf-8")
