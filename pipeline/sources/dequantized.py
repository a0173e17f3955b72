"""The float model of a checkpoint that is quantized already: the parameters that its codes and scales stand for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from calibration.checkpoints.reading import QuantizedCheckpoint, open_quantized
from calibration.schemes import dequantize

if TYPE_CHECKING:
    from torch import Tensor


def quantized_checkpoint(folder: Path, files: Sequence[Path]) -> QuantizedCheckpoint | None:
    """The folder's codes and scales; None for a float checkpoint. `files`: its weight files, index included.

    Raises BadInput for quantized checkpoints that are not read.
    """
    shards = [path for path in files if path.suffix == ".safetensors"]
    return (
        open_quantized(folder, shards)
        if shards and len(shards) == sum(path.suffix != ".json" for path in files)
        else None
    )


def float_tensors(checkpoint: QuantizedCheckpoint) -> dict[str, Tensor]:
    """Every parameter of the float model in float32, by name."""
    import numpy as np
    import torch

    plain = {name: np.array(array, copy=True) for name, array in checkpoint.plain()}
    whole = plain | {name: dequantize(checkpoint[name]) for name in checkpoint}
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in whole.items()}
