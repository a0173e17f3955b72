"""Memory by its address as tensors of torch, which do not own it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from model_repo.runtime.errors import SlipwayError


def tensor_at(address: int, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The tensor at `address` of a CPU's or CUDA device's memory, contiguous; it must not outlive the memory."""
    count = torch.Size(shape).numel() * dtype.itemsize
    if not count:
        return torch.empty(tuple(shape), dtype=dtype, device=device)
    return bytes_at(address, count, device).view(dtype).view(tuple(shape))


def bytes_at(address: int, count: int, device: torch.device) -> Tensor:
    """uint8 [count] at `address`. Raises SlipwayError where torch would give a copy."""
    if device.type == "cpu":
        return torch.frombuffer((ctypes.c_uint8 * count).from_address(address), dtype=torch.uint8)
    view = torch.as_tensor(_Bytes(address, count), device=device)
    if view.data_ptr() != address:
        raise SlipwayError(f"torch {torch.__version__} copies memory of {device} that it is given by address")
    return view


class _Bytes:
    """What torch reads by https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html."""

    def __init__(self, address: int, count: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (count,),
            "typestr": "|u1",
            "data": (address, False),
            "version": 3,
        }
