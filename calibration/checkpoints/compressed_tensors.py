"""Checkpoints of compressed-tensors (quant_method compressed-tensors), which llm-compressor writes.

pack-quantized:   weight_packed int32 [out, in * bits / 32], codes + 2^(bits - 1) along `in`, low bits first;
                  weight_shape; weight_zero_point packed along `out` the same way, where the scheme is asymmetric
int-quantized:    weight int8 [out, in]
float-quantized:  weight E4M3 [out, in]
naive-quantized:  weight int8 or E4M3

with weight_scale [out, groups], [out, 1] or [1], and input_scale where inputs have a fixed scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from calibration.schemes import Quantized, Scheme
from model_repo.runtime.errors import BadInput

from .groups import grouped, signed
from .tensors import Tensors, bits_of

FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")


def modules(tensors: Tensors, config: Mapping[str, Any]) -> list[str]:
    """The quantized layers. Raises BadInput for formats that are not read."""
    named = config.get("format")
    if named not in FORMATS:
        raise BadInput(f"compressed-tensors of format {named!r} are not read; those are {', '.join(FORMATS)}")
    return tensors.modules_with("weight_scale")


def read(tensors: Tensors, module: str, config: Mapping[str, Any]) -> Quantized:
    """One layer's weight. Raises BadInput for what does not fit."""
    where = f"{module}.weight"
    (scale,) = tensors.of(module, "weight_scale")
    if f"{module}.weight_g_idx" in tensors:
        raise BadInput(
            f"{module}.weight_g_idx: the groups' inputs lie scattered (actorder group), and an ONNX block is a run of "
            "neighbours; quantize the model with actorder static or none"
        )
    if f"{module}.weight_packed" in tensors:
        packed, shape = tensors.of(module, "weight_packed", "weight_shape")
        out, width = (int(size) for size in shape)
        bits = _bits(packed.shape[1], width, config)
        codes = signed(bits_of(packed, bits, width, 1), bits)
        zeros = None
        if f"{module}.weight_zero_point" in tensors:
            zeros = signed(bits_of(tensors[f"{module}.weight_zero_point"], bits, out, 0), bits)
        return grouped(codes, zeros, scale, bits, where)
    (weight,) = tensors.of(module, "weight")
    if weight.dtype == np.int8:
        zeros = tensors.get(f"{module}.weight_zero_point")
        if scale.size == 1:
            scale = np.full((len(weight), 1), scale.reshape(()), np.float32)
            zeros = None if zeros is None else np.full((len(weight), 1), zeros.reshape(()))
        return grouped(weight.astype(np.int32), zeros, scale, 8, where)
    if weight.dtype == ml_dtypes.float8_e4m3fn:
        return float8(weight, scale, where)
    raise BadInput(f"{where} is {weight.dtype}; compressed-tensors' int8, E4M3 and packed weights are read")


def float8(weight: Any, scale: Any, where: str) -> Quantized:
    """E4M3 codes [out, in] with one scale, or one for each row. Raises BadInput for scales of another shape."""
    scale = np.asarray(scale, np.float32)
    if not (np.isfinite(scale) & (scale > 0)).all():
        raise BadInput(f"{where}: scales must be finite and above zero; the checkpoint is broken")
    if scale.size == 1:
        return Quantized(weight, scale.reshape(()), None, Scheme("e4m3"))
    if scale.size != len(weight):
        raise BadInput(f"{where}: {scale.size} scales for {len(weight)} rows; one, or one a row, are read")
    return Quantized(weight, scale.reshape(-1), None, Scheme("e4m3", "channel"), 0)


def _bits(words: int, width: int, config: Mapping[str, Any]) -> int:
    """Bits of a code: the config's, of the group whose weights fit."""
    for group in config.get("config_groups", {}).values():
        bits = int((group.get("weights") or {}).get("num_bits", 0))
        if bits and words == -(-width * bits // 32):
            return bits
    raise BadInput(
        f"no config group has weights of which {width} take {words} words; config.json does not fit"
    )
