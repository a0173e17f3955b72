"""Writes the requests of a running server to a file, for calibration: off unless asked for, and never beyond a size.

JSON lines. The first names the model, {"slipway_capture": {"version": 1, "model": ...}}; each other is one request as
the engine gets it: its tokens, {"input_ids": [...]}, or its tensors, {"tensors": {name: {"dtype", "shape", "data"}}}
with the bytes in base64, little-endian and in C order. It holds what users sent: treat the file as you treat their
requests.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from .errors import BadInput

HEADER = "slipway_capture"
"""Key of the first line."""
VERSION = 1

MAX_BYTES = 64 * 2**20
"""Of a file, where nobody says otherwise: some fifteen million tokens."""


class Capture:
    """One file that grows by a line a request until it has `max_bytes`, and then no more. Thread-safe.

    A file that is there is added to, so that a server which starts again goes on; one that a kill broke off in the
    middle of a line is repaired. Never raises after construction: a full disk ends the capture, not the request.
    """

    def __init__(self, path: Path, model: str, max_bytes: int = MAX_BYTES) -> None:
        """Raises BadInput when the file cannot be written, or is no capture of this model."""
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        try:
            self._file: BinaryIO | None = path.open("a+b")
            self._bytes = self._resume(path, model, self._file)
        except OSError as error:
            raise BadInput(f"requests cannot be captured in {path}: {error}; name another file") from error

    def write(self, input_ids: Sequence[int]) -> None:
        """Adds one request, if it still fits."""
        self._add({"input_ids": list(map(int, input_ids))})

    def write_tensors(self, inputs: Mapping[str, npt.NDArray[Any]]) -> None:
        """Adds one request of named tensors, of numbers or truth values, if it still fits."""
        if self._bytes + sum(array.nbytes for array in inputs.values()) > self._max_bytes:
            return  # without the work of base64
        self._add({"tensors": {name: encoded(array) for name, array in inputs.items()}})

    def _add(self, entry: Mapping[str, Any]) -> None:
        line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            if self._file is None or self._bytes + len(line) > self._max_bytes:
                return
            try:
                self._file.write(line)
                self._file.flush()
            except OSError:
                self._close()
                return
            self._bytes += len(line)

    def close(self) -> None:
        """Ends the capture; later requests are not written."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    @staticmethod
    def _resume(path: Path, model: str, file: BinaryIO) -> int:
        """Checks or writes the first line, and cuts off a last one that is broken; gives the file's bytes."""
        file.seek(0)
        header = {HEADER: {"version": VERSION, "model": model}}
        first = file.readline()
        if not first:
            file.write(json.dumps(header).encode() + b"\n")
            file.flush()
            return file.tell()
        try:
            found = json.loads(first)
        except ValueError:
            found = None
        if found != header:
            raise BadInput(
                f"{path} is there already and holds no captured requests of {model!r}; name another file"
            )
        end, file_size = len(first), file.seek(0, 2)
        file.seek(end)
        for line in file:
            if line.endswith(b"\n"):
                end += len(line)
        if end < file_size:
            file.truncate(end)
        file.seek(0, 2)
        return end


def encoded(array: npt.NDArray[Any]) -> dict[str, Any]:
    """A tensor as JSON holds it; `decoded` gives it back."""
    stored = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    data = base64.b64encode(stored.tobytes()).decode()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": data}


def decoded(entry: Any) -> npt.NDArray[Any]:
    """The tensor of an entry. Raises ValueError for what `encoded` never gives."""
    try:
        dtype = np.dtype(entry["dtype"]).newbyteorder("<")
        data = base64.b64decode(entry["data"], validate=True)
        return np.frombuffer(data, dtype).reshape(entry["shape"]).astype(dtype.newbyteorder("="))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"no tensor: {error}") from error
