"""The tensors of a checkpoint's safetensors files as numpy arrays, each read when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from model_repo.runtime.errors import BadInput

Array = npt.NDArray[Any]

_VIEWED = {"float8_e4m3fn": ml_dtypes.float8_e4m3fn, "float8_e8m0fnu": ml_dtypes.float8_e8m0fnu}
"""torch's types that its numpy conversion lacks, with numpy's for the same bytes."""


class Tensors(Mapping[str, Array]):
    """Name -> array. bfloat16 and float16 become float32, which holds each of their values."""

    def __init__(self, files: Sequence[Path]) -> None:
        """Raises BadInput when a file is not whole or two hold the same tensor."""
        from safetensors import SafetensorError, safe_open

        self._files: dict[str, Path] = {}
        for path in files:
            try:
                with safe_open(path, "pt") as file:
                    names = list(file.keys())
            except (OSError, SafetensorError) as error:
                raise BadInput(f"{path} is truncated or corrupt ({error}); get the file again") from error
            for name in names:
                if name in self._files:
                    raise BadInput(
                        f"{path} and {self._files[name]} both hold {name!r}; get the checkpoint again"
                    )
                self._files[name] = path

    def __getitem__(self, name: str) -> Array:
        import torch
        from safetensors import safe_open

        with safe_open(self._files[name], "pt") as file:
            tensor = file.get_tensor(name)
        kind = str(tensor.dtype).removeprefix("torch.")
        if kind in _VIEWED:
            bytes_: Array = tensor.contiguous().view(torch.uint8).numpy()
            return bytes_.view(_VIEWED[kind])
        if kind in ("bfloat16", "float16"):
            tensor = tensor.float()
        array: Array = tensor.numpy()
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def of(self, module: str, *names: str) -> list[Array]:
        """The tensors `module.name`. Raises BadInput naming those that are missing."""
        missing = [f"{module}.{name}" for name in names if f"{module}.{name}" not in self._files]
        if missing:
            raise BadInput(f"the checkpoint lacks {', '.join(missing)}, which its format needs; get it again")
        return [self[f"{module}.{name}"] for name in names]

    def modules_with(self, name: str) -> list[str]:
        """Modules that hold a tensor of this name, in order."""
        end = f".{name}"
        return [key.removesuffix(end) for key in self._files if key.endswith(end)]


def bits_of(words: Array, bits: int, count: int, axis: int) -> npt.NDArray[np.int32]:
    """`count` unsigned numbers of `bits` bits from int32 words packed along `axis`, low bits first."""
    lanes = np.arange(32 // bits, dtype=np.uint32) * np.uint32(bits)
    unsigned = np.moveaxis(words, axis, -1).astype(np.int32, copy=False).view(np.uint32)
    spread = (unsigned[..., None] >> lanes) & np.uint32(2**bits - 1)
    flat = spread.reshape(*spread.shape[:-2], -1)
    if flat.shape[-1] < count:
        raise BadInput(
            f"{words.shape[axis]} words hold {flat.shape[-1]} numbers of {bits} bits; {count} are needed"
        )
    return np.moveaxis(flat[..., :count].astype(np.int32), -1, axis)
