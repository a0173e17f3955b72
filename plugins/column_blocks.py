"""How the quantized weights of `QuantizedMatMul` and `QuantizedGather` lie in memory on a CPU.

A weight [columns, inputs] of signed codes is cut into blocks of 16 columns by 4 inputs, the operands of one integer
dot product of AVX-512 VNNI. Codes are stored unsigned: that instruction multiplies unsigned with signed bytes, and the
activations are the signed ones.

    8 bit: [columns / 16, inputs / 4, 64]   byte 4 c + i: column 16 block + c, input 4 group + i;
                                            a byte means itself - 128
    4 bit: [columns / 16, inputs / 8, 64]   byte 4 c + i: inputs 8 group + i (low nibble) and 8 group + 4 + i (high);
                                            a nibble means itself - 8

Columns and inputs are padded with zeros to whole blocks. Scales of 8-bit columns are [columns], those of 4-bit
blocks [columns / 16, inputs / block, 16].
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from model_repo.runtime.errors import BadInput

COLUMNS = 16
BYTE_OFFSET = 128
NIBBLE_OFFSET = 8
MOST_INPUTS = 65536
"""More could overflow a sum of 32 bits."""

Bytes = npt.NDArray[np.uint8]


def pack_bytes(codes: npt.NDArray[np.int8]) -> Bytes:
    """Codes [columns, inputs] of -128 to 127 to uint8 [columns / 16, inputs / 4, 64]."""
    return _blocks(codes, 4, BYTE_OFFSET)


def pack_nibbles(codes: npt.NDArray[np.int8], block: int) -> Bytes:
    """Codes [columns, inputs] of -8 to 7 to uint8 [columns / 16, inputs / 8, 64]; inputs are padded to whole `block`s.

    Raises BadInput for a block that is not a multiple of 8.
    """
    if block % 8:
        raise BadInput(f"blocks of {block} inputs; the operator takes multiples of 8")
    whole = _blocks(codes, block, NIBBLE_OFFSET).reshape(-(-codes.shape[0] // COLUMNS), -1, 2, 64)
    packed: Bytes = whole[:, :, 0] | whole[:, :, 1] * np.uint8(16)
    return packed


def pack_block_scales(scales: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Scales [columns, blocks] to [columns / 16, blocks, 16], 1 for columns that do not exist."""
    missing = -scales.shape[0] % COLUMNS
    padded = np.pad(scales, ((0, missing), (0, 0)), constant_values=1)
    return np.ascontiguousarray(padded.reshape(-1, COLUMNS, scales.shape[1]).swapaxes(1, 2))


def unpack(packed: Bytes, bits: int, columns: int, inputs: int) -> npt.NDArray[np.int8]:
    """The codes [columns, inputs] of a packed weight."""
    if bits == 4:
        packed = np.stack([packed & 15, packed >> 4], 2).reshape(packed.shape[0], -1, 64)
    offset = NIBBLE_OFFSET if bits == 4 else BYTE_OFFSET
    codes = (packed.astype(np.int16) - offset).astype(np.int8)
    rows = codes.reshape(packed.shape[0], -1, COLUMNS, 4).swapaxes(1, 2)
    return np.ascontiguousarray(rows.reshape(packed.shape[0] * COLUMNS, -1)[:columns, :inputs])


def _blocks(codes: npt.NDArray[Any], multiple: int, offset: int) -> Bytes:
    """uint8 [columns / 16, padded inputs / 4, 64] of codes, zeros added."""
    columns, inputs = codes.shape
    if inputs > MOST_INPUTS:
        raise BadInput(f"a weight has {inputs} inputs; the operator takes at most {MOST_INPUTS}")
    padded = np.pad(codes, ((0, -columns % COLUMNS), (0, -inputs % multiple))).astype(np.int16) + offset
    groups = padded.astype(np.uint8).reshape(-1, COLUMNS, padded.shape[1] // 4, 4).swapaxes(1, 2)
    return np.ascontiguousarray(groups.reshape(groups.shape[0], -1, 4 * COLUMNS))
