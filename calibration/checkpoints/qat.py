"""Checkpoints of quantization-aware training by torch.ao: float weights beside the scales that they were trained with.

Each layer has weight (float), weight_fake_quant.scale [out] or [1] and weight_fake_quant.zero_point. Codes
follow from the weight and its scale:

    code = clip(round(w / scale), -128, 127)          symmetric int8, as torch.fake_quantize_per_channel_affine
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from calibration.schemes import Quantized, Scheme
from model_repo.runtime.errors import BadInput

from .tensors import Tensors

MARK = "weight_fake_quant.scale"


def modules(tensors: Tensors, config: Mapping[str, Any]) -> list[str]:
    """The quantized layers."""
    return tensors.modules_with(MARK)


def read(tensors: Tensors, module: str, config: Mapping[str, Any]) -> Quantized:
    """One layer's weight. Raises BadInput for zero points of weights and scales that do not fit."""
    weight, scale = tensors.of(module, "weight", MARK)
    zeros = tensors.get(f"{module}.weight_fake_quant.zero_point")
    if zeros is not None and zeros.any():
        raise BadInput(f"{module}.weight_fake_quant.zero_point is not zero; symmetric weights are read")
    if scale.size not in (1, len(weight)) or not (np.isfinite(scale) & (scale > 0)).all():
        raise BadInput(
            f"{module}.{MARK}: one finite scale above zero, or one a row of {len(weight)}, is needed"
        )
    rows = np.broadcast_to(scale.astype(np.float32).reshape(-1), (len(weight),))
    codes = np.clip(np.rint(weight.astype(np.float32) / rows[:, None]), -128, 127).astype(np.int8)
    return Quantized(codes, np.ascontiguousarray(rows), None, Scheme("int8", "channel"), 0)
