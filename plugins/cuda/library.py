"""The kernels over tensors of torch: `model_repo.runtime.kernel_library` with their addresses taken.

It serves the library for GPUs and the emulated one alike: tensors lie where the library expects them. Where torch does
not own the memory, `TensorAt` says by address what lies there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model_repo.runtime.kernel_library import CUDA as CUDA
from model_repo.runtime.kernel_library import DTYPE_NUMBERS, KernelLibrary, KernelTensor
from model_repo.runtime.kernel_library import INTERNAL as INTERNAL
from model_repo.runtime.kernel_library import INVALID as INVALID
from model_repo.runtime.kernel_library import MAX_RANK as MAX_RANK
from model_repo.runtime.kernel_library import UNSUPPORTED as UNSUPPORTED
from model_repo.runtime.kernel_library import AttributeDescription as AttributeDescription
from model_repo.runtime.kernel_library import Description as Description
from model_repo.runtime.kernel_library import KernelError as KernelError
from model_repo.runtime.kernel_library import TensorDescription as TensorDescription

_NAMES: Mapping[torch.dtype, str] = {
    getattr(torch, name.replace("float8e", "float8_e")): name for name in DTYPE_NUMBERS
}
DTYPES: Mapping[torch.dtype, int] = {dtype: DTYPE_NUMBERS[name] for dtype, name in _NAMES.items()}
"""Numbers of onnx.TensorProto.DataType."""


@dataclass(frozen=True)
class TensorAt:
    """A tensor by its address (0: not known, or no elements). strides: in elements; contiguous where None is given."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    address: int = 0
    strides: tuple[int, ...] | None = None


class Library:
    """A loaded library of kernels. Raises BadInput when the file cannot be loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._kernels = KernelLibrary(path)

    @property
    def info(self) -> dict[str, Any]:
        """Version, build hash, architectures, operators. Needs no driver."""
        return self._kernels.info

    def describe(self, operator: str) -> Description:
        """Raises BadInput when there is no such operator."""
        return self._kernels.describe(operator)

    def workspace_bytes(
        self, operator: str, tensors: Mapping[str, Tensor | TensorAt], attributes: Mapping[str, float]
    ) -> int:
        """Bytes of workspace for these shapes. Raises BadInput for arguments that are refused."""
        return self._kernels.workspace_bytes(operator, _placed(tensors), attributes)

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
        self._kernels.call(
            operator, _placed(tensors), attributes, workspace=workspace, workspace_bytes=workspace_bytes
        ).enqueue(stream)


def aligned_workspace(count: int, device: torch.device) -> Tensor:
    """Uninitialized uint8 [count], aligned to 256 bytes, on `device`."""
    raw = torch.empty(count + 256 if count else 0, dtype=torch.uint8, device=device)
    offset = -raw.data_ptr() % 256 if count else 0
    return raw[offset : offset + count]


def _placed(tensors: Mapping[str, Tensor | TensorAt]) -> dict[str, KernelTensor]:
    return {name: _kernel_tensor(tensor) for name, tensor in tensors.items()}


def _kernel_tensor(tensor: Tensor | TensorAt) -> KernelTensor:
    if isinstance(tensor, TensorAt):
        return KernelTensor(_NAMES[tensor.dtype], tensor.shape, tensor.address, tensor.strides)
    is_null = getattr(tensor, "null_address", False)  # set by cases that must be refused
    address = 0 if is_null else tensor.data_ptr()
    return KernelTensor(_NAMES[tensor.dtype], tuple(tensor.shape), address, tensor.stride())
