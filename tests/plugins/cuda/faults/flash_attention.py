"""Faults that `flash_attention` and what it shares with other attention kernels must not survive."""

from __future__ import annotations

import torch

from plugins.cuda.case import Case
from tests.plugins.cuda.mutation import Fault

KERNEL = "include/slipway/flash_attention.cuh"
MASKS = "include/slipway/masks.cuh"
SCORES = "include/slipway/scores.cuh"
SOFTMAX = "include/slipway/softmax.cuh"
TILE = "include/slipway/tile.cuh"
TILES = "include/slipway/query_tiles.cuh"
MMA = "include/slipway/attention_mma.cuh"
LAUNCHER = "csrc/flash_attention.cu"

DEFINES = ("SLIPWAY_MAX_HEAD_SIZE=64", "SLIPWAY_ONLY_FLOAT16")
LEFT_OUT = ("flash_attention_fp8.cu",)
FAULTS = [
    Fault("no barrier before the keys are read", KERNEL, "__syncthreads();  // the keys", "// the keys"),
    Fault(
        "no barrier before the values are read", KERNEL, "__syncthreads();  // the values", "// the values"
    ),
    Fault(
        "keys not waited for",
        KERNEL,
        "ptx::cp_async_wait<0>();\n    __syncthreads();  // the keys",
        "ptx::cp_async_wait<1>();\n    __syncthreads();  // the keys",
    ),
    Fault(
        "values not waited for",
        KERNEL,
        "ptx::cp_async_wait<0>();\n    __syncthreads();  // the values",
        "__syncthreads();  // the values",
    ),
    Fault("the same keys again", KERNEL, "load_keys(n0 + BlockN)", "load_keys(n0)"),
    Fault(
        "keys of the next tile before the scores of this one are done",
        KERNEL,
        "    load_values(n0);\n",
        "    load_values(n0);\n    if (n + 1 < end_tile) load_keys(n0 + BlockN);\n",
    ),
    Fault("upper left instead of lower right", KERNEL, "shift = length - tile.length", "shift = 0"),
    Fault("heads dealt to key heads in turn", KERNEL, "head / (p.heads / p.kv_heads)", "head % p.kv_heads"),
    Fault(
        "keys of the queries' rows",
        KERNEL,
        "p.cu_seqlens_k[tile.sequence] :",
        "p.cu_seqlens_q[tile.sequence] :",
    ),
    Fault(
        "keys past the end are values",
        KERNEL,
        "n0 + row < length ? at + row * p.value_row",
        "n0 + row <= length ? at + row * p.value_row",
    ),
    Fault(
        "query rows of the next sequence's tile",
        KERNEL,
        "(tile.begin + tile.first) * p.query_row",
        "tile.begin * p.query_row",
    ),
    Fault(
        "tiles with hidden keys at their end not masked",
        KERNEL,
        "n0 < common.begin || n0 + BlockN > common.end",
        "n0 < common.begin",
    ),
    Fault(
        "tiles with hidden keys at their begin not masked",
        KERNEL,
        "n0 < common.begin || n0 + BlockN > common.end",
        "n0 + BlockN > common.end",
    ),
    Fault("tiles seen in part left out", KERNEL, "n0 < seen.end &&", "n0 + BlockN <= seen.end &&"),
    Fault(
        "output rescaled only where all rows' maxima grow",
        KERNEL,
        "__any_sync(0xffffffffu, alpha",
        "__all_sync(0xffffffffu, alpha",
    ),
    Fault(
        "output rescaled by the other row",
        KERNEL,
        "output[r][d][2] *= alpha[1]",
        "output[r][d][2] *= alpha[0]",
    ),
    Fault("padding has sinks", KERNEL, "p.head_sink != nullptr && is_sequence", "p.head_sink != nullptr"),
    Fault(
        "a row too many stored", KERNEL, "if (row >= warp_rows) continue;", "if (row > warp_rows) continue;"
    ),
    Fault(
        "log-sum-exp by token first",
        KERNEL,
        "p.log_sum_exp[int64_t(head) * p.tokens_q + token]",
        "p.log_sum_exp[token * p.heads + head]",
    ),
    Fault(
        "columns past the value's size stored", KERNEL, "if (d * 8 + 8 < columns)", "if (d * 8 < columns + 8)"
    ),
    Fault(
        "shared memory for one tile of keys or values",
        KERNEL,
        "kBlockM + 2 * kBlockN) *",
        "kBlockM + kBlockN) *",
    ),
    Fault("bias of the first head", KERNEL, " + head * p.bias_head", ""),
    Fault("bias of the first sequence", KERNEL, "ptx::opaque(tile.sequence) * p.bias_batch + ", ""),
    Fault("ALiBi of the key's head", KERNEL, "p.mask.alibi_slopes[head]", "p.mask.alibi_slopes[kv_head]"),
    Fault(
        "left window one key short",
        MASKS,
        "position - mask.window_left + 1",
        "position - mask.window_left + 2",
    ),
    Fault(
        "right window one key short",
        MASKS,
        "position + mask.window_right + 1",
        "position + mask.window_right",
    ),
    Fault(
        "tiles visited by the last row alone",
        MASKS,
        "visible_keys(mask, first, length).begin, visible_keys(mask, last",
        "visible_keys(mask, last, length).begin, visible_keys(mask, last",
    ),
    Fault("softcap of half the height", MASKS, "cap - 2.f * cap *", "cap - cap *"),
    Fault("a key too many seen", SCORES, "at >= seen.end", "at > seen.end"),
    Fault(
        "ALiBi grows after the query",
        SCORES,
        "float(abs(position - (key + 8 * b + i)))",
        "float(position - (key + 8 * b + i))",
    ),
    Fault(
        "bias of the row above",
        SCORES,
        "key + 8 * b + i < keys) s[b][2 * h + i]",
        "key + 8 * b + i < keys) s[b][2 - 2 * h + i]",
    ),
    Fault(
        "maximum of two lanes of four",
        SOFTMAX,
        "return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));",
        "return x;",
    ),
    Fault("sum of two lanes of four", SOFTMAX, "return x + __shfl_xor_sync(0xffffffffu, x, 2);", "return x;"),
    Fault("rows without keys become NaN", SOFTMAX, "m == -INFINITY ? 0.f : m;", "m;"),
    Fault("sink not in the maximum", SOFTMAX, "fmaxf(maximum[h], sink2)", "maximum[h]"),
    Fault("log-sum-exp in base 2", SOFTMAX, "- Shift) * kLn2", "- Shift)"),
    Fault(
        "columns past the head's size copied", TILE, "valid = inside && offset >= 0", "valid = offset >= 0"
    ),
    Fault(
        "rows past the end not zeroed",
        TILE,
        "    ptx::cp_async_16(tile",
        "    if (valid) ptx::cp_async_16(tile",
    ),
    Fault(
        "rows stored without permutation",
        TILE,
        "tile + Layout::at(row, chunk),",
        "tile + (row * Layout::kChunks + chunk) * Layout::kPerChunk,",
    ),
    Fault(
        "A fragment's quarters swapped",
        TILE,
        "row + (matrix & 1) * 8 + lane % 8, chunk + (matrix >> 1)));\n}\n\n// B of 16 columns by two",
        "row + (matrix >> 1) * 8 + lane % 8, chunk + (matrix & 1)));\n}\n\n// B of 16 columns by two",
    ),
    Fault("values not transposed", TILE, "ptx::ldmatrix_x4<true>", "ptx::ldmatrix_x4<false>"),
    Fault(
        "probabilities' quarters swapped",
        MMA,
        "a[r][1] = pack<T>(p[r][n][2], p[r][n][3])",
        "a[r][1] = pack<T>(p[r][n + 1][0], p[r][n + 1][1])",
    ),
    Fault(
        "columns of the first block twice",
        MMA,
        "mma_step<T>(output[r][chunk + 1], a[r], {b[2], b[3]})",
        "mma_step<T>(output[r][chunk + 1], a[r], {b[0], b[1]})",
    ),
    Fault(
        "tiles counted from the wrong end by one",
        TILES,
        "(tiles - 1 - number) * tile_rows",
        "(tiles - number) * tile_rows",
    ),
    Fault(
        "rows behind the last sequence left alone",
        TILES,
        "sequence <= batch ? cu_seqlens[sequence] : rows",
        "cu_seqlens[min(sequence, batch)]",
    ),
    Fault("too few blocks for short sequences", TILES, "(batch + 1) * (tile_rows - 1)", "(tile_rows - 1)"),
    Fault("scale of the value's size", LAUNCHER, 'double(a.dim("head_dim"))', 'double(a.dim("value_dim"))'),
    Fault("causal is forgotten", LAUNCHER, "causal ? 0 : window_right", "window_right"),
    Fault("value's heads with key's stride", LAUNCHER, 'a.stride("value", 1)', 'a.stride("query", 1)'),
    Fault("bias taken for the output's type", LAUNCHER, 'is_float32(a, "bias")', "false"),
]


def chosen(case: Case) -> bool:
    """E4M3 has a suite of its own."""
    return case.tensors["query"].dtype == torch.float16
