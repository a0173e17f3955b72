"""How the weights of `weight_only_gemm` lie in memory, and how they are quantized and packed.

W is [k, n]: y = x W. It is cut into units of 64 columns by a slab of k: 64 codes of int4, 32 of int8 or
float8e4m3fn; k and n are padded with zeros to whole units. Units are ordered [column block, slab], so that a block of
the kernel reads one stretch of memory; each has 2048 bytes: four tiles of 16 columns, in each 16 bytes for every lane
of a warp, in order. The 16 bytes of lane 4 g + t (g 0 to 7, t 0 to 3) in tile j are four words of 32 bits, little
endian, the operands of mma.m16n8k16 for that lane. With column = 64 block + 16 j + 8 r + g:

    int4, word 2 h + r, nibble 4 e + i (bits 4 (4 e + i) and up):  k = 64 slab + 32 h + 8 i + 2 t + e
          h, r, e 0 or 1; i 0 to 3. A code is 0 to 15 and means code - zero point.
    8 bit, word 2 s + r, byte 2 u + e:                             k = 32 slab + 16 s + 8 u + 2 t + e
          s, r, u, e 0 or 1. int8 in two's complement; float8e4m3fn as it is.

Scales and zero points of groups, [groups, n], become [column block, groups, 64] with column 64 block + 16 j + 8 r + g
at place 8 g + 2 j + r: a lane's eight are neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model_repo.runtime.errors import BadInput

COLUMNS = 64
UNIT_BYTES = 2048
GROUPS = (32, 64, 128)
SLAB: dict[torch.dtype, int] = {torch.uint8: 64, torch.int8: 32, torch.float8_e4m3fn: 32}
"""k of a unit, by the dtype of the packed weights; uint8 stands for int4, two to a byte."""

SYMMETRIC_ZERO = 8
"""The zero point of int4 where none is given."""


@dataclass(frozen=True)
class PackedWeight:
    """What the operator takes. Grouped: scale and perhaps zero_point; else channel_scale.

    weight [column blocks, slabs, 2048] uint8, int8 or float8_e4m3fn; scale [column blocks, groups, 64] float16 or
    bfloat16, zero_point the same in uint8; channel_scale [n] float32. group: k that share a scale, 0 for all.
    """

    k: int
    n: int
    group: int
    weight: Tensor
    scale: Tensor | None = None
    zero_point: Tensor | None = None
    channel_scale: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """By the names of the operator's description."""
        names = ("weight", "scale", "zero_point", "channel_scale")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def pack_codes(codes: Tensor) -> Tensor:
    """Codes [k, n] to units [column blocks, slabs, 2048].

    codes: uint8 of 0 to 15 for int4, int8, or float8_e4m3fn. Raises BadInput for others.
    """
    if codes.dtype not in SLAB:
        raise BadInput(f"codes are {codes.dtype}; allowed: uint8 (0 to 15), int8, float8_e4m3fn")
    if codes.dtype == torch.uint8 and codes.numel() and int(codes.max()) > 15:
        raise BadInput(f"a code of int4 is {int(codes.max())}; allowed are 0 to 15")
    slab = SLAB[codes.dtype]
    padded = _padded(codes.view(torch.uint8), slab, COLUMNS)
    slabs, blocks = padded.shape[0] // slab, padded.shape[1] // COLUMNS
    if codes.dtype == torch.uint8:
        parts = padded.reshape(slabs, 2, 4, 4, 2, blocks, 4, 2, 8)  # slab h i t e, block j r g
        ordered = parts.permute(5, 0, 6, 8, 3, 1, 7, 4, 2)  # block slab, j g t, h r, e i
        nibbles = ordered.reshape(blocks, slabs, UNIT_BYTES, 2)
        return nibbles[..., 0] | nibbles[..., 1] << 4
    parts = padded.reshape(slabs, 2, 2, 4, 2, blocks, 4, 2, 8)  # slab s u t e, block j r g
    ordered = parts.permute(5, 0, 6, 8, 3, 1, 7, 2, 4)  # block slab, j g t, s r, u e
    return ordered.reshape(blocks, slabs, UNIT_BYTES).view(codes.dtype)


def unpack_codes(weight: Tensor, k: int, n: int) -> Tensor:
    """The inverse of `pack_codes`: units to codes [k, n]."""
    blocks, slabs, _ = weight.shape
    raw = weight.view(torch.uint8)
    if weight.dtype == torch.uint8:
        nibbles = torch.stack([raw & 15, raw >> 4], dim=-1)
        ordered = nibbles.reshape(blocks, slabs, 4, 8, 4, 2, 2, 2, 4)  # block slab, j g t, h r, e i
        parts = ordered.permute(1, 5, 8, 4, 7, 0, 2, 6, 3)
    else:
        ordered = raw.reshape(blocks, slabs, 4, 8, 4, 2, 2, 2, 2)  # block slab, j g t, s r, u e
        parts = ordered.permute(1, 5, 7, 4, 8, 0, 2, 6, 3)
    codes = parts.reshape(slabs * SLAB[weight.dtype], blocks * COLUMNS)
    return codes[:k, :n].contiguous().view(weight.dtype)


def pack_groups(values: Tensor) -> Tensor:
    """Scales or zero points [groups, n] to [column blocks, groups, 64]."""
    padded = _padded(values, 1, COLUMNS)
    groups, blocks = padded.shape[0], padded.shape[1] // COLUMNS
    parts = padded.reshape(groups, blocks, 4, 2, 8)  # group, block j r g
    return parts.permute(1, 0, 4, 2, 3).reshape(blocks, groups, COLUMNS).contiguous()


def unpack_groups(packed: Tensor, n: int) -> Tensor:
    """The inverse of `pack_groups`: [groups, n]."""
    blocks, groups, _ = packed.shape
    parts = packed.reshape(blocks, groups, 8, 4, 2).permute(1, 0, 3, 4, 2)
    return parts.reshape(groups, blocks * COLUMNS)[:, :n].contiguous()


def pack(
    codes: Tensor,
    *,
    group: int = 0,
    scale: Tensor | None = None,
    zero_point: Tensor | None = None,
    channel_scale: Tensor | None = None,
) -> PackedWeight:
    """Packs codes [k, n] with scale and zero_point [ceil(k / group), n], or channel_scale [n].

    W = (code - zero_point) * scale, where zero_point is 8 for int4 without one, and 0 for the others. Raises BadInput
    for what the operator does not take.
    """
    k, n = codes.shape
    if group and group not in GROUPS:
        raise BadInput(f"group is {group}; allowed are {GROUPS}, and 0 for scales per channel")
    if group == 0 and (codes.dtype == torch.uint8 or channel_scale is None):
        raise BadInput("int4 weights need a group; scales per channel need channel_scale")
    if group and (scale is None or codes.dtype == torch.float8_e4m3fn):
        raise BadInput("groups need scale, and int4 or int8 weights")
    if zero_point is not None and codes.dtype != torch.uint8:
        raise BadInput("only int4 weights have zero points")
    if group and scale is not None and scale.shape != (-(-k // group), n):
        raise BadInput(f"scale is {list(scale.shape)}; it must be {[-(-k // group), n]}")
    return PackedWeight(
        k,
        n,
        group,
        pack_codes(codes),
        None if scale is None else pack_groups(scale),
        None if zero_point is None else pack_groups(zero_point),
        None if channel_scale is None else channel_scale.float(),
    )


def quantize_int4(weight: Tensor, group: int, *, symmetric: bool, dtype: torch.dtype) -> PackedWeight:
    """Rounds W [k, n] to int4 in groups along k, with scales of `dtype` (that of the activations).

    Symmetric: codes of -7 to 7 around 8, scale the group's largest magnitude / 7. Else 0 to 15 from the group's least
    (or 0) to its largest (or 0). The codes are chosen for the scales as rounded to `dtype`.
    """
    k, n = weight.shape
    parts = _padded(weight.float(), group, 1).reshape(-1, group, n)
    if symmetric:
        scale = (parts.abs().amax(dim=1) / 7).to(dtype)
        zero = torch.full_like(scale, SYMMETRIC_ZERO, dtype=torch.float32)
    else:
        least, most = parts.amin(dim=1).clamp(max=0), parts.amax(dim=1).clamp(min=0)
        scale = ((most - least) / 15).to(dtype)
        zero = torch.where(scale > 0, -least / scale.float(), torch.zeros(())).round().clamp(0, 15)
    steps = torch.where(scale > 0, scale.float(), torch.ones(()))[:, None]
    codes = (parts / steps + zero[:, None]).round().clamp(1 if symmetric else 0, 15).to(torch.uint8)
    return pack(
        codes.reshape(-1, n)[:k],
        group=group,
        scale=scale,
        zero_point=None if symmetric else zero.to(torch.uint8),
    )


def quantize_int8(weight: Tensor, group: int = 0, *, dtype: torch.dtype = torch.float16) -> PackedWeight:
    """Rounds W [k, n] to int8, symmetric: per channel (group 0, float32 scales) or in groups (scales of `dtype`)."""
    k, n = weight.shape
    parts = _padded(weight.float(), group or k, 1).reshape(-1, group or k, n)
    scale = parts.abs().amax(dim=1) / 127
    scale = scale.to(dtype) if group else scale
    steps = torch.where(scale > 0, scale.float(), torch.ones(()))[:, None]
    codes = (parts / steps).round().clamp(-127, 127).to(torch.int8).reshape(-1, n)[:k]
    return pack(codes, group=group, scale=scale) if group else pack(codes, channel_scale=scale[0])


def quantize_e4m3(weight: Tensor) -> PackedWeight:
    """Rounds W [k, n] to float8e4m3fn with a float32 scale for each column."""
    scale = weight.float().abs().amax(dim=0) / 448
    steps = torch.where(scale > 0, scale, torch.ones(()))
    return pack((weight.float() / steps).clamp(-448, 448).to(torch.float8_e4m3fn), channel_scale=scale)


def _padded(values: Tensor, rows: int, columns: int) -> Tensor:
    """With zero rows and columns added up to multiples."""
    more_rows, more_columns = -values.shape[0] % rows, -values.shape[1] % columns
    return torch.nn.functional.pad(values, (0, more_columns, 0, more_rows))
