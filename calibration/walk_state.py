"""What a walk over a graph's blocks has on disk: each block's result, and the activations to go on with.

    walk.json       the key of what was asked; another key's state is thrown away
    block-0000.npz  codes, scales and folded weights of a block
    live.npz        activations after the last block that is done, and how many blocks those are

Each file appears whole, by rename, a block's before the activations that count it as done.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .formats import FORMATS
from .schemes import Quantized, Scheme

Array = npt.NDArray[Any]

_KEY, _LIVE, _DONE, _ABOUT = "walk.json", "live.npz", "done", "about"


class BlockResult(NamedTuple):
    """What was decided in one block."""

    quantized: dict[str, Quantized]  # by the weight's name; weights lie as [out, in]
    folded: dict[str, Array]  # float32 weights, as the graph holds them, that took up factors
    errors: dict[str, float]  # mean squared error of each layer's output over its mean square


class WalkState:
    """The state in one folder."""

    def __init__(self, folder: Path, key: str) -> None:
        """Takes up what is there for `key`, and removes what belongs to another."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        known = folder / _KEY
        if not known.is_file() or json.loads(known.read_text(encoding="utf-8")) != key:
            self.clear()
            _publish(known, json.dumps(key).encode())

    @property
    def blocks_done(self) -> int:
        """Blocks that need not be done again."""
        if not (self.folder / _LIVE).is_file():
            return 0
        with np.load(self.folder / _LIVE) as arrays:
            return int(arrays[_DONE])

    def live(self) -> list[dict[str, Array]]:
        """The activations of each batch after the blocks that are done, by name."""
        batches: list[dict[str, Array]] = []
        with np.load(self.folder / _LIVE) as arrays:
            for entry in arrays.files:
                number, _, name = entry.partition(":")
                if name:
                    batches += [{} for _ in range(int(number) + 1 - len(batches))]
                    batches[int(number)][name] = arrays[entry]
        return batches

    def save(self, number: int, result: BlockResult, live: list[dict[str, Array]]) -> None:
        """Records that block `number` is done."""
        self._save_block(number, result)
        named = {
            f"{batch}:{name}": array for batch, found in enumerate(live) for name, array in found.items()
        }
        self._write(_LIVE, {_DONE: np.array(number + 1), **named})

    def block(self, number: int) -> BlockResult:
        """The result of a block that is done."""
        with np.load(self._block_file(number)) as arrays:
            about = json.loads(str(arrays[_ABOUT]))
            quantized = {
                name: _unpacked(arrays, place, data) for place, (name, data) in enumerate(about["quantized"])
            }
            folded = {name: arrays[f"folded:{place}"] for place, name in enumerate(about["folded"])}
        return BlockResult(quantized, folded, about["errors"])

    def clear(self) -> None:
        """Removes the walk's files."""
        for path in (self.folder / _KEY, self.folder / _LIVE, *self.folder.glob("block-*.npz")):
            path.unlink(missing_ok=True)

    def _save_block(self, number: int, result: BlockResult) -> None:
        arrays: dict[str, Array] = {}
        about: dict[str, Any] = {"errors": result.errors, "folded": list(result.folded), "quantized": []}
        for place, (name, found) in enumerate(result.quantized.items()):
            arrays[f"codes:{place}"] = found.codes.view(np.uint8)  # numpy's files know no 4- and 8-bit floats
            arrays[f"scales:{place}"] = found.scales
            if found.zero_points is not None:
                arrays[f"zeros:{place}"] = found.zero_points
            about["quantized"].append(
                (
                    name,
                    {"scheme": asdict(found.scheme), "axis": found.axis, "tensor_scale": found.tensor_scale},
                )
            )
        for place, array in enumerate(result.folded.values()):
            arrays[f"folded:{place}"] = array
        self._write(self._block_file(number).name, {_ABOUT: np.array(json.dumps(about)), **arrays})

    def _write(self, name: str, arrays: Mapping[str, Array]) -> None:
        temporary = self.folder / f".{name}.{os.getpid()}"
        try:
            with temporary.open("wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes its own option for one of them
            temporary.replace(self.folder / name)
        finally:
            temporary.unlink(missing_ok=True)

    def _block_file(self, number: int) -> Path:
        return self.folder / f"block-{number:04d}.npz"


class Results(Mapping[str, Quantized]):
    """The quantized weights of all blocks by name, read from disk one at a time."""

    def __init__(self, state: WalkState, blocks: Mapping[str, int]) -> None:
        self._state = state
        self._blocks = blocks

    def __getitem__(self, name: str) -> Quantized:
        return self._state.block(self._blocks[name]).quantized[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._blocks)

    def __len__(self) -> int:
        return len(self._blocks)


def _unpacked(arrays: Mapping[str, Array], place: int, data: Mapping[str, Any]) -> Quantized:
    scheme = Scheme(**data["scheme"])
    zeros = arrays.get(f"zeros:{place}")
    codes = arrays[f"codes:{place}"].view(FORMATS[scheme.format].codes)
    return Quantized(codes, arrays[f"scales:{place}"], zeros, scheme, data["axis"], data["tensor_scale"])


def _publish(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(path)
