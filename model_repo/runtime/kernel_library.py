"""The C interface of the CUDA kernels (plugins/cuda/csrc/slipway_kernels.h) through ctypes, over plain addresses.

It serves the library for GPUs and the emulated one alike: tensors lie where the library expects them.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from .errors import BadInput, SlipwayError

MAX_RANK = 6
DTYPE_NUMBERS: Mapping[str, int] = {
    "float32": 1,
    "uint8": 2,
    "int8": 3,
    "int16": 5,
    "int32": 6,
    "int64": 7,
    "bool": 9,
    "float16": 10,
    "uint32": 12,
    "uint64": 13,
    "bfloat16": 16,
    "float8e4m3fn": 17,
}
"""Numbers of onnx.TensorProto.DataType, by the names that descriptions use."""

INVALID, UNSUPPORTED, CUDA, INTERNAL = 1, 2, 3, 4


class KernelError(SlipwayError):
    """A call that was not carried out for a reason other than its arguments. `code`: as in the header."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class KernelTensor(NamedTuple):
    """A tensor by its address; 0 where it is not known or there are no elements.

    dtype: a name of DTYPE_NUMBERS. strides: in elements, of each axis; contiguous where None is given.
    """

    dtype: str
    shape: tuple[int, ...]
    address: int = 0
    strides: tuple[int, ...] | None = None

    @property
    def steps(self) -> tuple[int, ...]:
        """The strides, also where None is given."""
        if self.strides is not None:
            return self.strides
        steps, step = [], 1
        for size in reversed(self.shape):
            steps.append(step)
            step *= size
        return tuple(reversed(steps))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("dtype", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("shape", ctypes.c_int64 * MAX_RANK),
        ("strides", ctypes.c_int64 * MAX_RANK),
    )


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


class Enqueued(Protocol):
    """A kernel's call with its arguments."""

    def enqueue(self, stream: int) -> None:
        """See `KernelCall.enqueue`."""


class Kernels(Protocol):
    """What a `KernelLibrary` is to those who call kernels."""

    def workspace_bytes(
        self, operator: str, tensors: Mapping[str, KernelTensor], attributes: Mapping[str, float]
    ) -> int:
        """See `KernelLibrary.workspace_bytes`."""

    def call(
        self,
        operator: str,
        tensors: Mapping[str, KernelTensor],
        attributes: Mapping[str, float] | None = None,
        *,
        workspace: int = 0,
        workspace_bytes: int = 0,
    ) -> Enqueued:
        """See `KernelLibrary.call`."""


class KernelLibrary:
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
        self, operator: str, tensors: Mapping[str, KernelTensor], attributes: Mapping[str, float]
    ) -> int:
        """Bytes of workspace for these shapes. Raises BadInput for arguments that are refused."""
        arguments = self._arguments(operator, tensors, attributes)
        count, error = ctypes.c_int64(0), _Error()
        code = self._library.slipway_workspace_bytes(*arguments, ctypes.byref(count), ctypes.byref(error))
        _raise(code, error)
        return count.value

    def call(
        self,
        operator: str,
        tensors: Mapping[str, KernelTensor],
        attributes: Mapping[str, float] | None = None,
        *,
        workspace: int = 0,
        workspace_bytes: int = 0,
    ) -> KernelCall:
        """A call whose arguments are written once and which may be enqueued any number of times.

        workspace: address of `workspace_bytes`, aligned to 256; 0 for none. Raises BadInput for unknown names.
        """
        arguments = self._arguments(operator, tensors, attributes or {})
        room = (ctypes.c_void_p(workspace or None), ctypes.c_int64(workspace_bytes))
        return KernelCall(self._library.slipway_run, (*arguments, *room))

    def _arguments(
        self, operator: str, tensors: Mapping[str, KernelTensor], attributes: Mapping[str, float]
    ) -> tuple[Any, ...]:
        description = self.describe(operator)
        description.check_names(tensors, attributes)
        values = description.attribute_values(attributes)
        array = (_Tensor * max(1, len(description.tensors)))()
        for place, parameter in zip(array, description.tensors, strict=False):
            tensor = tensors.get(parameter.name)
            if tensor is not None:
                rank = len(tensor.shape)
                place.data, place.dtype, place.rank = (
                    tensor.address or None,
                    DTYPE_NUMBERS[tensor.dtype],
                    rank,
                )
                place.shape[:rank], place.strides[:rank] = tensor.shape, tensor.steps
        return (
            operator.encode(),
            array,
            ctypes.c_int32(len(description.tensors)),
            (ctypes.c_double * max(1, len(values)))(*values),
            ctypes.c_int32(len(values)),
        )


class KernelCall:
    """An operator with its arguments. What it reads and writes stays with the caller."""

    def __init__(self, run: Any, arguments: tuple[Any, ...]) -> None:
        self._run = run
        self._arguments = arguments
        self._error = _Error()

    def enqueue(self, stream: int) -> None:
        """Enqueues the operator on `stream` (the integer value of a cudaStream_t).

        Raises BadInput for arguments that are refused, KernelError for what the device or the CUDA runtime did not do.
        """
        code = self._run(*self._arguments, ctypes.c_void_p(stream), ctypes.byref(self._error))
        _raise(code, self._error)


def _raise(code: int, error: _Error) -> None:
    if code == 0:
        return
    message = error.message.decode(errors="replace")
    if code == INVALID:
        raise BadInput(message)
    raise KernelError(code, message)
