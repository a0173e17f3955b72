"""Faults that the cases of `block_copy` must find."""

from __future__ import annotations

from tests.plugins.cuda.mutation import Fault

KERNEL = "include/slipway/block_copy.cuh"
LAUNCHER = "csrc/block_copy.cu"

FAULTS = [
    Fault(
        "a negative source is copied",
        KERNEL,
        "return source < 0 || destination < 0",
        "return destination < 0",
    ),
    Fault("a negative destination is written", KERNEL, "source < 0 || destination < 0 ||", "source < 0 ||"),
    Fault("a block to itself is a conflict", KERNEL, " || (p.same_pools && source == destination)", ""),
    Fault(
        "equal numbers of other pools are skipped",
        KERNEL,
        "(p.same_pools && source == destination)",
        "source == destination",
    ),
    Fault("sources out of range", KERNEL, "source >= p.source_blocks || ", ""),
    Fault("destinations out of range", KERNEL, " || destination >= p.destination_blocks", ""),
    Fault(
        "one block too many",
        KERNEL,
        "destination >= p.destination_blocks",
        "destination > p.destination_blocks",
    ),
    Fault("two writers", KERNEL, "other_destination == destination || ", ""),
    Fault("a reader is overtaken", KERNEL, " || (p.same_pools && other_source == destination)", ""),
    Fault(
        "readers of other pools count",
        KERNEL,
        "(p.same_pools && other_source == destination)",
        "other_source == destination",
    ),
    Fault(
        "pairs that ask for nothing count",
        KERNEL,
        "if (i == pair || asks_nothing(p, other_source, other_destination)) continue;",
        "if (i == pair) continue;",
    ),
    Fault("a pair is its own rival", KERNEL, "if (i == pair || asks_nothing", "if (asks_nothing"),
    Fault(
        "a part of the list is not looked at",
        KERNEL,
        "i < p.num_pairs; i += 32",
        "i < p.num_pairs - 5; i += 32",
    ),
    Fault("lane 0 decides alone", KERNEL, "__any_sync(0xffffffffu, wrong) && !skipped", "wrong && !skipped"),
    Fault("every lane counts", KERNEL, "  if (lane != 0) return;\n", ""),
    Fault(
        "what is skipped counts as refused",
        KERNEL,
        "__any_sync(0xffffffffu, wrong) && !skipped",
        "__any_sync(0xffffffffu, wrong)",
    ),
    Fault("the last warp's pairs run on", KERNEL, "  if (pair >= p.num_pairs) return;\n", ""),
    Fault("first pool only", KERNEL, "pool * p.destination_pool_stride", "0"),
    Fault(
        "pools of the source are as those of the destination",
        KERNEL,
        "pool * p.source_pool_stride",
        "pool * p.destination_pool_stride",
    ),
    Fault(
        "source and destination swapped",
        KERNEL,
        "p.pairs[2 * pair] * p.source_block_stride",
        "p.pairs[2 * pair + 1] * p.source_block_stride",
    ),
    Fault(
        "the end of a block is left",
        KERNEL,
        "(p.block_bytes + kBlockCopyChunk - 1) / kBlockCopyChunk",
        "p.block_bytes / kBlockCopyChunk + (p.block_bytes < kBlockCopyChunk)",
    ),
    Fault("loads beyond the block", KERNEL, "if (begin + at < p.block_bytes) held[i]", "held[i]"),
    Fault("stores beyond the block", KERNEL, "if (begin + at < p.block_bytes) *", "*"),
    Fault("a thread's vectors overlap", KERNEL, "int64_t(threadIdx.x) * 16;", "int64_t(threadIdx.x) * 32;"),
    Fault("the grid's rest is left", KERNEL, "item += gridDim.x", "item += items"),
    Fault("pairs of one chunk", KERNEL, "block = item / chunks, pool", "block = item, pool"),
    Fault(
        "too few blocks to accept",
        LAUNCHER,
        "(p.num_pairs + pairs_of_block - 1) / pairs_of_block",
        "(p.num_pairs + pairs_of_block) / pairs_of_block / 2 + 1",
    ),
]
