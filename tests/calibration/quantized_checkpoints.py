"""Tiny checkpoints in the formats of GPTQ, AWQ and ModelOpt, packed number by number as their documentation says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def words(rows: np.ndarray, bits: int, order: tuple[int, ...] | None = None) -> np.ndarray:
    """int32 [rows, columns * bits / 32]: each word from its numbers one by one, the first in the lowest bits."""
    each = 32 // bits
    order = order or tuple(range(each))
    packed = np.zeros((rows.shape[0], rows.shape[1] // each), np.uint32)
    for row in range(rows.shape[0]):
        for word in range(packed.shape[1]):
            for place, column in enumerate(order):
                packed[row, word] |= np.uint32(int(rows[row, word * each + column]) << (place * bits))
    return packed.view(np.int32)


def gptq_layer(
    codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray, bits: int, v2: bool = False
) -> dict[str, torch.Tensor]:
    """`codes` [out, in], `zeros` and `scales` [out, groups], unsigned. The packing of AutoGPTQ's QuantLinear."""
    stored = zeros if v2 else zeros - 1
    width, groups = codes.shape[1], zeros.shape[1]
    return {
        "qweight": torch.from_numpy(words(codes, bits).T.copy()),
        "qzeros": torch.from_numpy(words(stored.T, bits)),
        "scales": torch.from_numpy(scales.T.copy()).half(),
        "g_idx": torch.arange(width, dtype=torch.int32) // (width // groups),
    }


def awq_layer(codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray) -> dict[str, torch.Tensor]:
    """The packing of AutoAWQ's WQLinear_GEMM."""
    return {
        "qweight": torch.from_numpy(words(codes.T, 4, AWQ_ORDER)),
        "qzeros": torch.from_numpy(words(zeros.T, 4, AWQ_ORDER)),
        "scales": torch.from_numpy(scales.T.copy()).half(),
    }


def write(
    folder: Path,
    layers: dict[str, dict[str, torch.Tensor]],
    quantization: dict[str, Any] | None,
    **plain: torch.Tensor,
) -> Path:
    """A checkpoint folder with one file; gives the file."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{name}.{key}": value.contiguous() for name, parts in layers.items() for key, value in parts.items()
    }
    save_file(tensors | plain, folder / "model.safetensors")
    config = {"model_type": "llama"} | ({} if quantization is None else {"quantization_config": quantization})
    (folder / "config.json").write_text(json.dumps(config))
    return folder / "model.safetensors"
