"""Checkpoints of AutoAWQ (quant_method awq, version gemm).

Each linear layer has qweight int32 [in, out / 8] and qzeros int32 [groups, out / 8], eight 4-bit numbers a word along
`out`: the columns 0, 2, 4, 6, 1, 3, 5, 7 of each eight from the low bits up; and scales [groups, out].

    w[out, in] = (code - zero point of the group) * scale of the group
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from calibration.schemes import Quantized
from model_repo.runtime.errors import BadInput

from .groups import grouped, signed
from .tensors import Tensors, bits_of

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Column of each eight that lies at each place of a word."""
_BITS = 4


def modules(tensors: Tensors, config: Mapping[str, Any]) -> list[str]:
    """The quantized layers. Raises BadInput for other layouts of AutoAWQ."""
    version = str(config.get("version", "gemm")).lower()
    if version != "gemm" or int(config.get("bits", config.get("w_bit", _BITS))) != _BITS:
        raise BadInput(
            f"an AWQ checkpoint of version {version!r} and {config.get('bits')} bits; 'gemm' with 4 bits is read"
        )
    return tensors.modules_with("qweight")


def read(tensors: Tensors, module: str, config: Mapping[str, Any]) -> Quantized:
    """One layer's weight. Raises BadInput for what does not fit."""
    qweight, scales = tensors.of(module, "qweight", "scales")
    out = qweight.shape[1] * 32 // _BITS
    codes = signed(_columns(qweight, out), _BITS)
    zeros = None
    if f"{module}.qzeros" in tensors:
        zeros = signed(_columns(tensors[f"{module}.qzeros"], out), _BITS).T
    return grouped(codes.T, zeros, scales.T, _BITS, f"{module}.weight")


def _columns(words: npt.NDArray[Any], out: int) -> npt.NDArray[np.int32]:
    """Unsigned numbers [rows, out] in the order of their columns."""
    packed = bits_of(words, _BITS, out, 1).reshape(len(words), -1, len(ORDER))
    columns = np.empty_like(packed)
    columns[..., ORDER] = packed
    return columns.reshape(len(words), out)
