"""How the quantized weights of `QuantizedMatMul` and `QuantizedGather` lie in memory on a CPU.

A weight [columns, inputs] of signed codes is cut into blocks of 16 columns by 4 inputs, the operands of one integer
dot product of AVX-512 VNNI. Codes are stored unsigned: that instruction multiplies unsigned with signed bytes, and the
activations are the signed ones.

    8 bit: [columns / 16, inputs / 4, 64]   byte 4 c + i: column 16 block + c, input 4 group + i;
                                            a byte means itself - 128
    8 bit, in blocks: [columns / 16, inputs / block, 16 block + 32]
                                            block / 4 times those 64 bytes, then the block's scales, float16 [16]: a
                                            product with one row reads one stream of memory
    4 bit, in blocks: [columns / 16, inputs / block, 8 block + 32]
                                            block / 8 times 64 bytes, byte 4 c + i: inputs 8 group + i (low nibble)
                                            and 8 group + 4 + i (high); a nibble means itself - 8; then the scales

Columns and inputs are padded with zeros to whole blocks. Scales of columns are [columns]. Those of blocks are multiples
of one factor, a power of two that puts the largest into the middle of float16's range.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from model_repo.runtime.errors import BadInput

COLUMNS = 16
BYTE_OFFSET = 128
NIBBLE_OFFSET = 8
SCALE_BYTES = 2 * COLUMNS
LARGEST_EXPONENT = 15
"""The largest float16 is just below 2**16; scales are divided so that theirs lies in [2**14, 2**15)."""

MOST_INPUTS = 65536
"""More could overflow a sum of 32 bits."""
MOST_BYTES_IN_BLOCK = 128
"""8-bit inputs with one scale: more could overflow their sum, which is of 16-bit codes."""

Bytes = npt.NDArray[np.uint8]


def pack_bytes(codes: npt.NDArray[np.int8]) -> Bytes:
    """Codes [columns, inputs] of -128 to 127 to uint8 [columns / 16, inputs / 4, 64]."""
    return _blocks(codes, 4, BYTE_OFFSET)


def pack_blocks(
    codes: npt.NDArray[np.int8], scales: npt.NDArray[np.float32], block: int, bits: int
) -> tuple[Bytes, npt.NDArray[np.float32]]:
    """Codes [columns, inputs] of `bits` 8 or 4 (-8 to 7) and scales [columns, inputs / block], of either sign, to uint8
    [columns / 16, inputs / block, 2 bits block + 32] and the scales' factor, float32 [].

    Scales are rounded as by `storable_scales`. Raises BadInput for a block that is not a multiple of 8.
    """
    if block % 8:
        raise BadInput(f"blocks of {block} inputs; the operator takes multiples of 8")
    whole = _blocks(codes, block, NIBBLE_OFFSET if bits == 4 else BYTE_OFFSET)
    groups, blocks = len(whole), scales.shape[1]
    if bits == 4:
        pairs = whole.reshape(groups, blocks, block // 8, 2, 4 * COLUMNS)
        whole = pairs[..., 0, :] | pairs[..., 1, :] * np.uint8(16)
    halves, factor = _halves(scales)
    padded = np.pad(halves, ((0, -len(halves) % COLUMNS), (0, 0))).reshape(groups, COLUMNS, blocks)
    tail = np.ascontiguousarray(padded.swapaxes(1, 2)).view(np.uint8)
    return np.concatenate([whole.reshape(groups, blocks, -1), tail], axis=2), factor


def storable_scales(scales: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Scales of a matrix's blocks as `pack_blocks` keeps them: with float16's 11 bits, so off by at most 1 in 2048;
    those below the largest times 2**-30 keep fewer."""
    halves, factor = _halves(scales)
    return halves.astype(np.float32) * factor


def unpack(packed: Bytes, bits: int, columns: int, inputs: int) -> npt.NDArray[np.int8]:
    """The codes [columns, inputs] of a packed weight."""
    if packed.shape[2] != 4 * COLUMNS:
        packed = packed[:, :, :-SCALE_BYTES].reshape(len(packed), -1, 4 * COLUMNS)
    if bits == 4:
        packed = np.stack([packed & 15, packed >> 4], 2).reshape(len(packed), -1, 4 * COLUMNS)
    offset = NIBBLE_OFFSET if bits == 4 else BYTE_OFFSET
    codes = (packed.astype(np.int16) - offset).astype(np.int8)
    rows = codes.reshape(packed.shape[0], -1, COLUMNS, 4).swapaxes(1, 2)
    return np.ascontiguousarray(rows.reshape(packed.shape[0] * COLUMNS, -1)[:columns, :inputs])


def unpack_block_scales(
    packed: Bytes, factor: npt.NDArray[np.float32], columns: int
) -> npt.NDArray[np.float32]:
    """The scales [columns, inputs / block] of a weight packed in blocks."""
    halves = np.ascontiguousarray(packed[:, :, -SCALE_BYTES:]).view("<f2").astype(np.float32)
    scales: npt.NDArray[np.float32] = halves.swapaxes(1, 2).reshape(-1, packed.shape[1])[:columns] * factor
    return scales


def _halves(scales: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.float32]]:
    """float16 and a power of two, float32 []: their products are the scales."""
    exponent = int(np.frexp(np.abs(scales).max(initial=0))[1]) - LARGEST_EXPONENT
    halves = np.ldexp(scales, -exponent).astype("<f2")
    return halves, np.asarray(np.ldexp(np.float32(1), exponent))


def _blocks(codes: npt.NDArray[Any], multiple: int, offset: int) -> Bytes:
    """uint8 [columns / 16, padded inputs / 4, 64] of codes, zeros added."""
    columns, inputs = codes.shape
    if inputs > MOST_INPUTS:
        raise BadInput(f"a weight has {inputs} inputs; the operator takes at most {MOST_INPUTS}")
    padded = np.pad(codes, ((0, -columns % COLUMNS), (0, -inputs % multiple))).astype(np.int16) + offset
    groups = padded.astype(np.uint8).reshape(-1, COLUMNS, padded.shape[1] // 4, 4).swapaxes(1, 2)
    return np.ascontiguousarray(groups.reshape(groups.shape[0], -1, 4 * COLUMNS))
