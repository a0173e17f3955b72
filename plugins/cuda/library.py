"""The C interface of the kernels (`csrc/slipway_kernels.h`) through ctypes, over tensors of torch.

It serves the library for GPUs and the emulated one alike: tensors lie where the library expects them. Where torch does
not own the memory, `TensorAt` says by address what lies there.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model_repo.runtime.errors import BadInput, SlipwayError

MAX_RANK = 6
DTYPES: Mapping[torch.dtype, int] = {
    torch.float32: 1,
    torch.uint8: 2,
    torch.int8: 3,
    torch.int16: 5,
    torch.int32: 6,
    torch.int64: 7,
    torch.bool: 9,
    torch.float16: 10,
    torch.uint32: 12,
    torch.uint64: 13,
    torch.bfloat16: 16,
    torch.float8_e4m3fn: 17,
}
"""Numbers of onnx.TensorProto.DataType."""

INVALID, UNSUPPORTED, CUDA, INTERNAL = 1, 2, 3, 4


class KernelError(SlipwayError):
    """A call that was not carried out for a reason other than its arguments. `code`: as in the header."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("dtype", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("shape", ctypes.c_int64 * MAX_RANK),
        ("strides", ctypes.c_int64 * MAX_RANK),
    )


@dataclass(frozen=True)
class TensorAt:
    """A tensor by its address (0: not known, or no elements). strides: in elements; contiguous where None is given."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    address: int = 0
    strides: tuple[int, ...] | None = None

    def data_ptr(self) -> int:
        """The address, as torch calls it."""
        return self.address

    def dim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def stride(self) -> tuple[int, ...]:
        """In elements, of each axis."""
        if self.strides is not None:
            return self.strides
        strides, step = [], 1
        for size in reversed(self.shape):
            strides.append(step)
            step *= size
        return tuple(reversed(strides))


class _Error(ctypes.Structure):
    _fields_ = (("message", ctypes.c_char * 1024),)


@dataclass(frozen=True)
class TensorDescription:
    """A tensor of an operator: role is input, output or inout; shape holds symbols, numbers and 'symbol+1' forms."""

    name: str
    role: str
    optional: bool
    strided: bool
    type: str
    shape: tuple[str, ...]
    meaning: str


@dataclass(frozen=True)
class AttributeDescription:
    """An attribute of an operator, with its default and range."""

    name: str
    default: float
    min: float
    max: float
    integer: bool
    meaning: str


@dataclass(frozen=True)
class Description:
    """What the library says of an operator. `types`: the dtypes' names that each type variable stands for."""

    name: str
    meaning: str
    types: Mapping[str, tuple[str, ...]]
    tensors: tuple[TensorDescription, ...]
    attributes: tuple[AttributeDescription, ...]
    limits: tuple[str, ...] = field(default=())

    @classmethod
    def from_json(cls, text: str) -> Description:
        """Reads what `slipway_describe` gives."""
        read: dict[str, Any] = json.loads(text)
        return cls(
            read["name"],
            read["meaning"],
            {name: tuple(types) for name, types in read["types"].items()},
            tuple(TensorDescription(**{**t, "shape": tuple(t["shape"])}) for t in read["tensors"]),
            tuple(AttributeDescription(**a) for a in read["attributes"]),
            tuple(read["limits"]),
        )

    def check_names(self, tensors: Mapping[str, object], attributes: Mapping[str, object]) -> None:
        """Raises BadInput when a name is not one of this operator's."""
        for given, known, kind in (
            (tensors, [t.name for t in self.tensors], "tensor"),
            (attributes, [a.name for a in self.attributes], "attribute"),
        ):
            for name in given:
                if name not in known:
                    raise BadInput(f"{self.name} has no {kind} {name!r}; it has {', '.join(known)}")

    def attribute_values(self, attributes: Mapping[str, float]) -> list[float]:
        """Values in the order of the description, defaults where none is given."""
        return [float(attributes.get(a.name, a.default)) for a in self.attributes]


class Library:
    """A loaded library of kernels. Raises BadInput when the file cannot be loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._library = ctypes.CDLL(str(path))
        except OSError as error:
            raise BadInput(f"cannot load {path}: {error}. Build it with `make plugins`") from error
        self._library.slipway_kernels_info.restype = ctypes.c_char_p
        self._library.slipway_describe.restype = ctypes.c_char_p
        self._descriptions: dict[str, Description] = {}

    @cached_property
    def info(self) -> dict[str, Any]:
        """Version, build hash, architectures, operators. Needs no driver."""
        read: dict[str, Any] = json.loads(self._library.slipway_kernels_info())
        return read

    def describe(self, operator: str) -> Description:
        """Raises BadInput when there is no such operator."""
        if operator not in self._descriptions:
            text = self._library.slipway_describe(operator.encode())
            if text is None:
                raise BadInput(
                    f"{self.path.name} has no operator {operator!r}; it has {self.info['operators']}"
                )
            self._descriptions[operator] = Description.from_json(text.decode())
        return self._descriptions[operator]

    def workspace_bytes(
        self, operator: str, tensors: Mapping[str, Tensor | TensorAt], attributes: Mapping[str, float]
    ) -> int:
        """Bytes of workspace for these shapes. Raises BadInput for arguments that are refused."""
        call = self._call(operator, tensors, attributes)
        count, error = ctypes.c_int64(0), _Error()
        code = self._library.slipway_workspace_bytes(*call, ctypes.byref(count), ctypes.byref(error))
        _raise(code, error)
        return count.value

    def run(
        self,
        operator: str,
        tensors: Mapping[str, Tensor],
        attributes: Mapping[str, float] | None = None,
        *,
        workspace: Tensor | None = None,
        stream: int = 0,
    ) -> None:
        """Enqueues an operator on `stream` (the integer value of a cudaStream_t); outputs are among `tensors`.

        `workspace`: uint8, 256-byte aligned; allocated where the tensors are if None is given and some is needed.
        The caller keeps it alive until the stream has passed. Raises BadInput for arguments that are refused,
        KernelError for what the device or the CUDA runtime did not do.
        """
        attributes = attributes or {}
        if workspace is None:
            needed = self.workspace_bytes(operator, tensors, attributes)
            workspace = aligned_workspace(needed, next(iter(tensors.values())).device)
        self.enqueue(
            operator,
            tensors,
            attributes,
            workspace=workspace.data_ptr() if workspace.numel() else 0,
            workspace_bytes=workspace.numel(),
            stream=stream,
        )

    def enqueue(
        self,
        operator: str,
        tensors: Mapping[str, Tensor | TensorAt],
        attributes: Mapping[str, float],
        *,
        workspace: int,
        workspace_bytes: int,
        stream: int,
    ) -> None:
        """`run` with a workspace at an address, 0 for none. Raises what `run` raises."""
        call = self._call(operator, tensors, attributes)
        error = _Error()
        code = self._library.slipway_run(
            *call,
            ctypes.c_void_p(workspace or None),
            ctypes.c_int64(workspace_bytes),
            ctypes.c_void_p(stream),
            ctypes.byref(error),
        )
        _raise(code, error)

    def _call(
        self, operator: str, tensors: Mapping[str, Tensor | TensorAt], attributes: Mapping[str, float]
    ) -> Sequence[Any]:
        description = self.describe(operator)
        description.check_names(tensors, attributes)
        values = description.attribute_values(attributes)
        array = (_Tensor * max(1, len(description.tensors)))()
        for place, parameter in zip(array, description.tensors, strict=False):
            tensor = tensors.get(parameter.name)
            if tensor is not None:
                is_null = getattr(tensor, "null_address", False)  # set by cases that must be refused
                place.data = None if is_null else tensor.data_ptr()
                place.dtype, place.rank = DTYPES[tensor.dtype], tensor.dim()
                place.shape[: tensor.dim()] = tensor.shape
                place.strides[: tensor.dim()] = tensor.stride()
        return (
            operator.encode(),
            array,
            ctypes.c_int32(len(description.tensors)),
            (ctypes.c_double * max(1, len(values)))(*values),
            ctypes.c_int32(len(values)),
        )


def aligned_workspace(count: int, device: torch.device) -> Tensor:
    """Uninitialized uint8 [count], aligned to 256 bytes, on `device`."""
    raw = torch.empty(count + 256 if count else 0, dtype=torch.uint8, device=device)
    offset = -raw.data_ptr() % 256 if count else 0
    return raw[offset : offset + count]


def _raise(code: int, error: _Error) -> None:
    if code == 0:
        return
    message = error.message.decode(errors="replace")
    if code == INVALID:
        raise BadInput(message)
    raise KernelError(code, message)
