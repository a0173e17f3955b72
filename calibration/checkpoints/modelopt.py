"""Checkpoints of NVIDIA ModelOpt in Hugging Face format (hf_quant_config.json, or quant_method modelopt).

FP8:    weight E4M3 [out, in]; weight_scale, input_scale: one number each (or weight_scale [out])
NVFP4:  weight uint8 [out, in / 2], two E2M1 codes a byte, low bits first; weight_scale E4M3 [out, in / 16];
        weight_scale_2, one number

    w = code * weight_scale                          FP8
    w = code * weight_scale * weight_scale_2         NVFP4
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from calibration.schemes import Quantized, Scheme
from model_repo.runtime.errors import BadInput

from .compressed_tensors import float8
from .tensors import Tensors

ALGORITHMS = ("FP8", "NVFP4")


def modules(tensors: Tensors, config: Mapping[str, Any]) -> list[str]:
    """The quantized layers. Raises BadInput for algorithms that are not read."""
    algorithm = config.get("quant_algo")
    if algorithm not in ALGORITHMS:
        raise BadInput(
            f"ModelOpt checkpoints of {algorithm!r} are not read; those of {', '.join(ALGORITHMS)} are"
        )
    return tensors.modules_with("weight_scale")


def read(tensors: Tensors, module: str, config: Mapping[str, Any]) -> Quantized:
    """One layer's weight. Raises BadInput for what does not fit."""
    weight, scale = tensors.of(module, "weight", "weight_scale")
    where = f"{module}.weight"
    if config.get("quant_algo") == "FP8":
        if weight.dtype != ml_dtypes.float8_e4m3fn:
            raise BadInput(
                f"{where} is {weight.dtype}, FP8 is E4M3; config and checkpoint do not belong together"
            )
        return float8(weight, scale, where)
    (whole,) = tensors.of(module, "weight_scale_2")
    if weight.dtype != np.uint8 or scale.shape != (len(weight), weight.shape[1] // 8):
        raise BadInput(
            f"{where}: {weight.dtype} {list(weight.shape)} with scales {list(scale.shape)} is no NVFP4"
        )
    codes = np.stack((weight & 0xF, weight >> 4), axis=-1).reshape(len(weight), -1)
    return Quantized(
        codes.astype(np.uint8).view(ml_dtypes.float4_e2m1fn),
        scale.astype(np.float32),
        None,
        Scheme("nvfp4", "block", 16),
        1,
        float(np.asarray(whole, np.float32).reshape(())),
    )
