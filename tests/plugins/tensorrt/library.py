"""The plugins in C++, called as TensorRT does, by a driver compiled with the tests' declaration of its interfaces."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plugins.cpu.build import find_compiler
from plugins.toolchain import run_command

HERE = Path(__file__).parent
INCLUDE = HERE / "include"
TYPES = {
    torch.float32: 0,
    torch.float16: 1,
    torch.int8: 2,
    torch.int32: 3,
    torch.bool: 4,
    torch.uint8: 5,
    torch.float8_e4m3fn: 6,
    torch.bfloat16: 7,
    torch.int64: 8,
}
"""nvinfer1::DataType."""
FLOAT32, INT32, CHAR = 1, 5, 6
BUILD, RUNTIME = 0, 1


class _Dims(ctypes.Structure):
    _fields_ = (("count", ctypes.c_int32), ("sizes", ctypes.c_int64 * 8))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int32),
        ("format", ctypes.c_int32),
        ("data", ctypes.c_void_p),
        ("dims", _Dims),
    )


class _Field(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("type", ctypes.c_int32),
        ("length", ctypes.c_int32),
    )


class Refused(Exception):
    """A plugin said no; its words are what it logged."""


class PluginLibrary:
    """The driver, linked with a library of plugins."""

    def __init__(self, library: Path, folder: Path, include: Path = INCLUDE) -> None:
        driver = folder / "libdriver.so"
        command = [*find_compiler().command, "-std=c++17", "-O0", "-fPIC", "-shared", "-Wall", "-Wextra"]
        command += ["-Wno-deprecated-declarations", f"-I{include}", f"-I{INCLUDE}", str(HERE / "driver.cpp")]
        run_command([*command, str(library), f"-Wl,-rpath,{library.parent}", "-o", str(driver)])
        self.calls = ctypes.CDLL(str(driver))
        for name in ("last_words", "field_name"):
            getattr(self.calls, name).restype = ctypes.c_char_p
        for name in ("plugin_create", "plugin_reload"):
            getattr(self.calls, name).restype = ctypes.c_void_p
        self.calls.plugin_workspace.restype = ctypes.c_int64

    def fields(self, name: str) -> list[str]:
        """Attributes that the plugin's creator lists."""
        count = self.calls.field_count(name.encode())
        return [self.calls.field_name(name.encode(), place).decode() for place in range(count)]

    def create(
        self, name: str, inputs: Sequence[str], attributes: Mapping[str, Any], phase: int = BUILD
    ) -> Plugin:
        """Attributes: whole numbers as int. Raises Refused."""
        text = ",".join(inputs).encode() + b"\0"
        values: list[Any] = [ctypes.create_string_buffer(text, len(text))]
        fields = [_Field(b"input_names", ctypes.addressof(values[0]), CHAR, len(text))]
        for key, value in attributes.items():
            kind, number = (
                (INT32, ctypes.c_int32(value)) if isinstance(value, int) else (FLOAT32, ctypes.c_float(value))
            )
            values.append(number)
            fields.append(_Field(key.encode(), ctypes.addressof(number), kind, 1))
        made = self.calls.plugin_create(name.encode(), (_Field * len(fields))(*fields), len(fields), phase)
        if not made:
            raise Refused(self.words())
        return Plugin(self, made)

    def words(self) -> str:
        """What was logged last."""
        words: bytes = self.calls.last_words()
        return words.decode()


class Plugin:
    """One plugin object."""

    def __init__(self, library: PluginLibrary, handle: int) -> None:
        self.library = library
        self.handle = ctypes.c_void_p(handle)

    def __del__(self) -> None:
        self.library.calls.plugin_delete(self.handle)

    @property
    def outputs(self) -> int:
        count: int = self.library.calls.plugin_outputs(self.handle)
        return count

    def reloaded(self) -> Plugin:
        """One that an engine would make of this one's state, for a context. Raises Refused."""
        made = self.library.calls.plugin_reload(self.handle)
        if not made:
            raise Refused(self.library.words())
        return Plugin(self.library, made)

    def takes(self, place: int, tensors: Sequence[Tensor], inputs: int, linear: bool = True) -> bool:
        """Whether tensor `place` may have its type, after those before it, in the linear format or in another."""
        given = _described(tensors, linear)
        return bool(self.library.calls.plugin_takes(self.handle, place, given, inputs, len(tensors) - inputs))

    def results(self, tensors: Sequence[Tensor]) -> list[tuple[torch.dtype, list[int]]]:
        """Type and shape of each output, for these inputs. Raises Refused."""
        outputs = self.outputs
        given = (_Tensor * (len(tensors) + outputs))(*_described(tensors))
        if self.library.calls.plugin_results(self.handle, given, len(tensors), outputs):
            raise Refused(self.library.words())
        names = {number: dtype for dtype, number in TYPES.items()}
        return [(names[t.type], t.dims.sizes[: t.dims.count]) for t in given[len(tensors) :]]

    def configure(self, tensors: Sequence[Tensor], inputs: int) -> None:
        """Raises Refused."""
        if self.library.calls.plugin_configure(
            self.handle, _described(tensors), inputs, len(tensors) - inputs
        ):
            raise Refused(self.library.words())

    def workspace_bytes(self, tensors: Sequence[Tensor], inputs: int) -> int:
        """For inputs, then outputs."""
        count: int = self.library.calls.plugin_workspace(
            self.handle, _described(tensors), inputs, len(tensors) - inputs
        )
        return count

    def enqueue(self, tensors: Sequence[Tensor], inputs: int, workspace: Tensor) -> None:
        """Raises Refused."""
        at = ctypes.c_void_p(workspace.data_ptr() if workspace.numel() else None)
        outputs = len(tensors) - inputs
        if self.library.calls.plugin_enqueue(self.handle, _described(tensors), inputs, outputs, at):
            raise Refused(self.library.words())


def _described(tensors: Sequence[Tensor], linear: bool = True) -> Any:
    described = (_Tensor * len(tensors))()
    for place, tensor in zip(described, tensors, strict=True):
        place.type, place.format, place.data = TYPES[tensor.dtype], 0 if linear else 1, tensor.data_ptr()
        place.dims.count = tensor.dim()
        place.dims.sizes[: tensor.dim()] = tensor.shape
    return described
