"""The weight files of a checkpoint folder, checked by their headers before torch reads any of them.

A safetensors file is: uint64 little-endian length of the header, the header as JSON (tensor name -> dtype,
shape, data_offsets), and the data (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from model_repo.runtime.errors import BadInput

from .files import read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


def weight_files(folder: Path, allow_pickle: bool) -> tuple[Path, ...]:
    """The files that hold the folder's weights, index included, checked.

    Raises BadInput when there are none, when a shard is missing, when a file is truncated or corrupt, and for
    pickled checkpoints unless `allow_pickle`.
    """
    if (folder / SINGLE).is_file():
        read_header(folder / SINGLE)
        return (folder / SINGLE,)
    if (folder / INDEX).is_file():
        return (folder / INDEX, *_shards(folder))
    pickles = [folder / name for name in PICKLES if (folder / name).is_file()]
    if not pickles:
        raise BadInput(f"{folder} holds no weights; it needs {SINGLE}, or {INDEX} and its shards")
    if not allow_pickle:
        raise BadInput(
            f"{folder} holds only pickled weights ({pickles[0].name}), which can run code when they are "
            "read; convert them to safetensors, or give --allow-pickle (only tensors are then unpickled)"
        )
    return (*pickles, *_pickle_shards(folder))


def read_header(path: Path) -> dict[str, Any]:
    """Tensor name -> {dtype, shape, data_offsets} of a safetensors file whose data is whole.

    Raises BadInput when the file is truncated, longer than its header says, or its header is not valid.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length_bytes = file.read(_LENGTH_BYTES)
        if len(length_bytes) < _LENGTH_BYTES:
            raise _broken(path, f"it has only {size} bytes")
        (length,) = struct.unpack("<Q", length_bytes)
        if length > min(_MAX_HEADER_BYTES, size - _LENGTH_BYTES):
            raise _broken(path, f"its header should take {length} bytes, but the file has {size}")
        try:
            header = json.loads(file.read(length).decode("utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise _broken(path, f"its header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise _broken(path, "its header is not a JSON object")
    header.pop("__metadata__", None)
    end = 0
    for name, (start, stop) in sorted(_ranges(path, header).items(), key=lambda item: item[1]):
        if start != end:
            raise _broken(path, f"the data of {name!r} begins at byte {start}, where {end} is expected")
        end = stop
    data_bytes = size - _LENGTH_BYTES - length
    if data_bytes != end:
        raise _broken(path, f"its tensors take {end} bytes, but {data_bytes} are there")
    return header


def _ranges(path: Path, header: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Tensor name -> its bytes [start, stop), checked against dtype and shape."""
    ranges = {}
    for name, entry in header.items():
        try:
            start, stop = (int(offset) for offset in entry["data_offsets"])
            bits = _DTYPE_BITS[entry["dtype"]] * math.prod(int(dim) for dim in entry["shape"])
        except (TypeError, KeyError, ValueError) as error:
            raise _broken(path, f"its entry {name!r} is not valid: {entry!r}") from error
        if start < 0 or (stop - start) * 8 != bits:
            raise _broken(path, f"tensor {name!r} {entry['dtype']}{entry['shape']} has {stop - start} bytes")
        ranges[name] = (start, stop)
    return ranges


def _shards(folder: Path) -> list[Path]:
    """The shards that the safetensors index names, each checked to hold the tensors it is said to hold."""
    shards = []
    for file_name, tensors in _weight_map(folder / INDEX).items():
        path = folder / file_name
        missing = sorted(tensors - set(read_header(path)))
        if missing:
            raise _broken(path, f"{INDEX} says that it holds {missing[0]!r}, which it does not")
        shards.append(path)
    return shards


def _pickle_shards(folder: Path) -> list[Path]:
    """The shards that the index of a pickled checkpoint names, when it has one."""
    index = folder / PICKLES[1]
    return [folder / name for name in _weight_map(index)] if index.is_file() else []


def _weight_map(index: Path) -> dict[str, set[str]]:
    """Shard file name -> names of its tensors. Raises BadInput for a bad index and for missing shards."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadInput(f"{index} has no weight_map; get the checkpoint's index again")
    shards: dict[str, set[str]] = {}
    for tensor, file_name in weight_map.items():
        if not isinstance(file_name, str) or Path(file_name).name != file_name:
            raise BadInput(f"{index} names the shard {file_name!r}; shards must lie in the same folder")
        shards.setdefault(file_name, set()).add(tensor)
    missing = sorted(name for name in shards if not (index.parent / name).is_file())
    if missing:
        raise BadInput(
            f"{index.parent} lacks {len(missing)} of {len(shards)} shards, first {missing[0]}; get them again"
        )
    return dict(sorted(shards.items()))


def _broken(path: Path, reason: str) -> BadInput:
    return BadInput(f"{path} is truncated or corrupt: {reason}; get the file again")
