"""Faults that the cases of `paged_attention` must find; those of its 8-bit pools are in `paged_attention_int8`."""

from __future__ import annotations

import torch

from plugins.cuda.case import Case
from tests.plugins.cuda.mutation import Fault

DEFINES = ("SLIPWAY_MAX_HEAD_SIZE=64",)
LEFT_OUT = tuple(
    f"paged_attention_{name}.cu" for name in ("fp16_int8", "fp16_fp8", "bf16", "bf16_int8", "bf16_fp8")
)

LOADER = "include/slipway/paged_loader.cuh"
KERNEL = "include/slipway/paged_attention.cuh"
ROWS = "include/slipway/paged_rows.cuh"
MERGE = "include/slipway/paged_merge.cuh"
POOL = "include/slipway/paged_pool.cuh"
LAUNCHER = "csrc/paged_attention.cu"


def chosen(case: Case) -> bool:
    """Pools and queries of float16."""
    return case.tensors["key_cache"].dtype == case.tensors["query"].dtype == torch.float16


FAULTS = [
    Fault(
        "no barrier before a tile is read", LOADER, "    __syncthreads();  // the copies", "    // the copies"
    ),
    Fault("a tile not waited for", LOADER, "else ptx::cp_async_wait<2>();", "else ptx::cp_async_wait<3>();"),
    Fault(
        "the tile ahead goes where one is read",
        LOADER,
        "stage_(params.stages - 1)",
        "stage_(params.stages - 2)",
    ),
    Fault("blocks of 16 keys", LOADER, "table_[key >> p_.block_shift]", "table_[key >> 4]"),
    Fault(
        "the first 16 rows of a block",
        LOADER,
        "(int64_t(block) << p_.block_shift) + (key & in_block)",
        "(int64_t(block) << p_.block_shift) + (key & 15)",
    ),
    Fault("a key too many", LOADER, "key < item_end_ && block >= 0", "key <= item_end_ && block >= 0"),
    Fault(
        "keys before the window",
        LOADER,
        "valid = key >= item_begin_ && key < item_end_ && block",
        "valid = key < item_end_ && block",
    ),
    Fault(
        "blocks of keys before the window looked up",
        LOADER,
        "block_of(min(max(key, item_begin_), key + 15))",
        "block_of(key)",
    ),
    Fault("every lane's own block", LOADER, "__shfl_sync(0xffffffffu, block_, r / 16)", "block_"),
    Fault("blocks of the first 16 keys", LOADER, "block_, r / 16)", "block_, 0)"),
    Fault("one block a tile looked up", LOADER, "thread % kGroups * 16", "0"),
    Fault(
        "key head 0",
        LOADER,
        "head_row = slot * p_.limits.kv_heads + kv_head_;",
        "head_row = slot * p_.limits.kv_heads;",
    ),
    Fault("another sequence's blocks", LOADER, "int64_t(item.sequence) * p_.max_blocks", "0"),
    Fault(
        "the blocks of the first tile again",
        LOADER,
        "      if (key_ < item_end_) {\n        find_blocks(thread);",
        "      if (key_ < item_end_) {",
    ),
    Fault(
        "a unit of the next worker",
        LOADER,
        "if (++unit >= end) next_kind(p);",
        "if (++unit > end) next_kind(p);",
    ),
    Fault("units of one kind only", LOADER, "!= (kinds == 1); }", "!= false; }"),
    Fault(
        "no barrier before the maxima are read", KERNEL, "    __syncthreads();  // maxima", "    // maxima"
    ),
    Fault(
        "no barrier before the probabilities are read",
        KERNEL,
        "    __syncthreads();  // and so",
        "    // and so",
    ),
    Fault(
        "no barrier before the sums are read",
        KERNEL,
        "  __syncthreads();\n  const float factor",
        "  const float factor",
    ),
    Fault(
        "narrow: results not rescaled",
        KERNEL,
        "    rescale(acc, alpha);\n#pragma unroll\n    for (int n = 0; n < kKeys",
        "#pragma unroll\n    for (int n = 0; n < kKeys",
    ),
    Fault(
        "wide: results not rescaled",
        KERNEL,
        "    rescale(acc, alpha);\n#pragma unroll\n    for (int n = 0; n < kBlocks",
        "#pragma unroll\n    for (int n = 0; n < kBlocks",
    ),
    Fault("wide: a quarter of the sum left out", KERNEL, "quarter < 4", "quarter < 3"),
    Fault(
        "narrow: a warp's sum left out",
        KERNEL,
        "for (int w = 1; w < kPagedWarps; w++) total",
        "for (int w = 1; w < kPagedWarps - 1; w++) total",
    ),
    Fault(
        "narrow: a warp's maximum left out",
        KERNEL,
        "for (int w = 0; w < kPagedWarps; w++) most",
        "for (int w = 0; w < 1; w++) most",
    ),
    Fault(
        "wide: tiles seen in part left out",
        KERNEL,
        "key >= rows.any_sees.end ||",
        "key + kKeys > rows.any_sees.end ||",
    ),
    Fault("the second 16 probabilities are the first", KERNEL, "n / 8 + 2, lane", "n / 8, lane"),
    Fault(
        "padding's first row left alone",
        KERNEL,
        "first = p.cu_seqlens[p.limits.batch] * heads",
        "first = (p.cu_seqlens[p.limits.batch] + 1) * heads",
    ),
    Fault("a chunk's results at the first one's place", ROWS, "+ item.chunk - s.first_chunk", ""),
    Fault("chunks counted from position 0", ROWS, "+ item.chunk - s.first_chunk", "+ item.chunk"),
    Fault(
        "positions of the item's sequence",
        ROWS,
        "p.past_lens[sequence] + number",
        "p.past_lens[item.sequence] + number",
    ),
    Fault("heads by the row of the item", ROWS, "(item.first_row + row) % group", "row % group"),
    Fault(
        "tokens by the row of the item", ROWS, "index = (item.first_row + row) / group", "index = row / group"
    ),
    Fault("tiles of the diagonal not masked", ROWS, "key + 8 * Blocks <= all_see.end", "key <= all_see.end"),
    Fault("the window's edge not masked", ROWS, "if (key >= all_see.begin && key", "if (key"),
    Fault("ALiBi of the first head", ROWS, "p.mask.alibi_slopes[place(h).head]", "p.mask.alibi_slopes[0]"),
    Fault("no sink in the sum", ROWS, "fmaf(sum, weight, ptx::exp2(sink2 - top))", "sum * weight"),
    Fault("the sink of the first head", ROWS, "head_sink<T>(p, at.head)", "head_sink<T>(p, 0)"),
    Fault("log-sum-exp in base 2", ROWS, "(top + log2f(total)) * kLn2", "(top + log2f(total))"),
    Fault(
        "the row below",
        ROWS,
        "at = place(h);\n    if (at.token < 0) return;",
        "at = place(1 - h);\n    if (at.token < 0) return;",
    ),
    Fault(
        "the last chunk not merged",
        MERGE,
        "for (int c = warp; c < chunks; c",
        "for (int c = warp; c < chunks - 1; c",
    ),
    Fault(
        "no barrier before the parts are read",
        MERGE,
        "    __syncthreads();\n    const RowEnd end",
        "    const RowEnd end",
    ),
    Fault(
        "parts overwritten while they are read", MERGE, "    __syncthreads();  // `parts`", "    // `parts`"
    ),
    Fault(
        "partial results as they are",
        MERGE,
        "weight = ptx::exp2(p.partial_state[2 * row] - base)",
        "weight = 1.f",
    ),
    Fault("sums of chunks as they are", MERGE, "fmaf(one[1], ptx::exp2(one[0] - base), sum)", "sum + one[1]"),
    Fault(
        "half of the query's columns",
        POOL,
        "far = column + (k8Bit ? 2 : 8)",
        "far = column + (k8Bit ? 2 : 0)",
    ),
    Fault(
        "values of the wrong keys",
        POOL,
        "row = key + 16 * i + (matrix & 1) * 8",
        "row = key + 16 * i + (matrix >> 1) * 8",
    ),
    Fault(
        "the query is not turned",
        LAUNCHER,
        'p.query = turns_query(a) ? w.query : a.data("query");',
        'p.query = a.data("query");',
    ),
    Fault(
        "packed values are keys",
        LAUNCHER,
        "query + 2 * (heads + kv_heads) * size",
        "query + 2 * heads * size",
    ),
]
