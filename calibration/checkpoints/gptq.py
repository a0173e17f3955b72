"""Checkpoints of GPTQModel and AutoGPTQ (quant_method gptq).

Each linear layer has qweight int32 [in * bits / 32, out], codes packed along `in`, low bits first; scales [groups,
out]; qzeros int32 [groups, out * bits / 32], zero points packed along `out`, one less than they are (checkpoint_format
gptq) or as they are (gptq_v2); and g_idx [in], the group of each input.

    w[out, in] = (code - zero point of the group) * scale of the group
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from calibration.schemes import Quantized
from model_repo.runtime.errors import BadInput

from .groups import grouped, signed
from .tensors import Tensors, bits_of


def modules(tensors: Tensors, config: Mapping[str, Any]) -> list[str]:
    """The quantized layers."""
    return tensors.modules_with("qweight")


def read(tensors: Tensors, module: str, config: Mapping[str, Any]) -> Quantized:
    """One layer's weight. Raises BadInput for groups that are scattered over the inputs, and what does not fit."""
    bits = int(config.get("bits", 4))
    qweight, qzeros, scales = tensors.of(module, "qweight", "qzeros", "scales")
    width, out = qweight.shape[0] * 32 // bits, qweight.shape[1]
    _check_groups(tensors, module, width, len(scales))
    codes = signed(bits_of(qweight, bits, width, 0), bits)
    zeros = bits_of(qzeros, bits, out, 1)
    if config.get("checkpoint_format", "gptq") != "gptq_v2":
        zeros = (zeros + 1) & (2**bits - 1)
    return grouped(codes.T, signed(zeros, bits).T, scales.T, bits, f"{module}.weight")


def _check_groups(tensors: Tensors, module: str, width: int, groups: int) -> None:
    name = f"{module}.g_idx"
    if name not in tensors:
        return
    if not np.array_equal(tensors[name], np.arange(width) // max(width // groups, 1)):
        raise BadInput(
            f"{name}: the groups' inputs lie scattered (desc_act without static_groups), and an ONNX block is a run of "
            "neighbours; quantize the model with desc_act=False or static_groups=True"
        )
