"""Faults that the form of `flash_attention` for sm_90a must not survive."""

from __future__ import annotations

from plugins.checks.flash_attention import Setup, case_of
from plugins.cuda.case import Case
from tests.plugins.cuda.mutation import Fault

OPERATOR = "flash_attention"
DEFINES = ("SLIPWAY_ARCH_90A", "SLIPWAY_MAX_HEAD_SIZE=128", "SLIPWAY_ONLY_FLOAT16")
LEFT_OUT = ("flash_attention_half.cu", "flash_attention_fp8.cu")
COMPUTE_CAPABILITY = 90

KERNEL = "include/slipway/flash_attention_sm90.cuh"
ORDER = "include/slipway/work_order.cuh"
LAUNCHER = "csrc/flash_attention_sm90.cu"


def cases() -> list[Case]:
    """Rings that wrap, tiles that a sequence ends in, both kinds of consumers, two panels, columns that are padding,
    a window that begins in one tile for some rows of a warp and in the next for others.
    """
    setups = (
        Setup((200, 20), (530, 70), causal=True, padding=3, form=2),
        Setup((30,), (300,), heads=4, kv_heads=2, softcap=2.0, alibi=True, bias="hq", sink=True, form=2),
        Setup((20, 9), (280, 0), heads=1, head_dim=128, value_dim=72, window_left=140, form=2),
    )
    return [case_of(setup, seed=number) for number, setup in enumerate(setups)]


FAULTS = [
    Fault(
        "keys not waited for",
        KERNEL,
        "    ptx::mbarrier_wait(barriers.key_full(stage_of<Shape>(tile)), parity_of<Shape>(tile));\n",
        "",
    ),
    Fault(
        "values not waited for",
        KERNEL,
        "    ptx::mbarrier_wait(barriers.value_full(stage_of<Shape>(tile)), parity_of<Shape>(tile));\n",
        "",
    ),
    Fault(
        "keys overwritten while they are read",
        KERNEL,
        "    ptx::mbarrier_wait(barriers.key_empty(stage), parity_of<Shape>(tile) ^ 1);\n",
        "",
    ),
    Fault(
        "values overwritten while they are read",
        KERNEL,
        "    ptx::mbarrier_wait(barriers.value_empty(stage), parity_of<Shape>(tile) ^ 1);\n",
        "",
    ),
    Fault(
        "queries overwritten while they are read",
        KERNEL,
        "        ptx::mbarrier_wait(barriers.query_empty(g), query_parity);\n        const int row",
        "        const int row",
    ),
    Fault(
        "queries not waited for",
        KERNEL,
        "      ptx::mbarrier_wait(barriers.query_full(group), parity);\n",
        "",
    ),
    Fault(
        "wrong parity of a free stage",
        KERNEL,
        "ptx::mbarrier_wait(barriers.key_empty(stage), parity_of<Shape>(tile) ^ 1)",
        "ptx::mbarrier_wait(barriers.key_empty(stage), parity_of<Shape>(tile))",
    ),
    Fault("parity changes every tile", KERNEL, "count / Shape::kStages & 1", "count & 1"),
    Fault("query parity stays", KERNEL, "      query_parity ^= 1;\n", ""),
    Fault(
        "too few bytes expected",
        KERNEL,
        "expect(full, Shape::kTileBytes)",
        "expect(full, Shape::kTileBytes - 16)",
    ),
    Fault(
        "too many bytes expected",
        KERNEL,
        "barriers.query_full(g), Shape::kQueryBytes)",
        "barriers.query_full(g), Shape::kQueryBytes + 16)",
    ),
    Fault(
        "one warp frees a stage for all",
        KERNEL,
        "constexpr int warps = 4 * Shape::kConsumers;",
        "constexpr int warps = 4;",
    ),
    Fault("barriers unknown to the copy engine", KERNEL, "    ptx::mbarrier_fence_init();\n", ""),
    Fault(
        "keys freed before the product",
        KERNEL,
        "        ptx::wgmma_wait<1>();\n        ptx::hold_registers(scores);\n        release_keys(count + 1);\n",
        "        release_keys(count + 1);\n        ptx::wgmma_wait<1>();\n        ptx::hold_registers(scores);\n",
    ),
    Fault(
        "values freed before the product",
        KERNEL,
        "        ptx::wgmma_wait<0>();\n        ptx::hold_registers(output);\n"
        "        ptx::hold_registers(probabilities);\n        release_values(count);\n#pragma",
        "        release_values(count);\n        ptx::wgmma_wait<0>();\n        ptx::hold_registers(output);\n"
        "        ptx::hold_registers(probabilities);\n#pragma",
    ),
    Fault("scores read early", KERNEL, "ptx::wgmma_wait<1>()", "ptx::wgmma_wait<2>()"),
    Fault(
        "output written early",
        KERNEL,
        "        ptx::wgmma_wait<0>();\n        ptx::hold_registers(output);\n"
        "        ptx::hold_registers(probabilities);\n        release_values(count);\n#pragma",
        "        release_values(count);\n#pragma",
    ),
    Fault(
        "no fence before a product",
        KERNEL,
        "    ptx::hold_registers(scores);\n    ptx::wgmma_fence();\n",
        "    ptx::hold_registers(scores);\n",
    ),
    Fault(
        "values of the next sequence are not zeroed",
        KERNEL,
        "zero_values(count, work->keys - n * BlockN);",
        "{}",
    ),
    Fault(
        "one row too few is zeroed",
        KERNEL,
        "zero_values(count, work->keys - n * BlockN)",
        "zero_values(count, work->keys + 1 - n * BlockN)",
    ),
    Fault(
        "zeros not fenced",
        KERNEL,
        "    ptx::fence_proxy_async();\n    ptx::named_barrier_wait(kAllConsumers",
        "    ptx::named_barrier_wait(kAllConsumers",
    ),
    Fault(
        "zeros of the other consumers not waited for",
        KERNEL,
        "    ptx::named_barrier_wait(kAllConsumers, Shape::kConsumerThreads);\n",
        "",
    ),
    Fault(
        "output not fenced",
        KERNEL,
        "    ptx::fence_proxy_async();\n    release(barriers.query_empty(group));",
        "    release(barriers.query_empty(group));",
    ),
    Fault(
        "output read before it is staged", KERNEL, "    __syncwarp();\n    T* const out", "    T* const out"
    ),
    Fault(
        "rows of the output permuted",
        KERNEL,
        "                                                      (chunk ^ (row & 7)) * 16);",
        "                                                      chunk * 16);",
    ),
    Fault(
        "wrong step of the keys",
        KERNEL,
        "k / 4 * Shape::kPanelBytes + k % 4 * 32",
        "k / 4 * Shape::kPanelBytes + k % 4 * 64",
    ),
    Fault(
        "wrong panel of the queries",
        KERNEL,
        "k / 4 * Shape::kQueryPanelBytes + k % 4 * 32",
        "k / 4 * Shape::kPanelBytes + k % 4 * 32",
    ),
    Fault(
        "wrong step of the values",
        KERNEL,
        "ptx::advanced(values, k * 2048)",
        "ptx::advanced(values, k * 1024)",
    ),
    Fault(
        "wrong panel of the values",
        KERNEL,
        "ptx::matrix_descriptor(value_tile(tile), Shape::kPanelBytes, 1024,",
        "ptx::matrix_descriptor(value_tile(tile), 1024, 1024,",
    ),
    Fault("values not transposed", KERNEL, "ptx::wgmma<T, D, true>", "ptx::wgmma<T, D, false>"),
    Fault(
        "probabilities in the wrong registers",
        KERNEL,
        "scores[2 * k + i / 2][i % 2 * 2], scores",
        "scores[2 * k + i % 2][i / 2 * 2], scores",
    ),
    Fault(
        "nobody has the first turn",
        KERNEL,
        "ptx::named_barrier_arrive(kTurn, 256);  // the first turn",
        "{}  // the first turn",
    ),
    Fault("turns are not passed", KERNEL, "        pass_turn();\n", ""),
    Fault("the last turn is left", KERNEL, "    if (group == 0) wait_for_turn();", "    //"),
    Fault(
        "the output is not scaled down",
        KERNEL,
        "output[d][2] *= alpha[1], output[d][3] *= alpha[1];",
        "output[d][2] *= alpha[1];",
    ),
    Fault(
        "mask of the first row for all", KERNEL, "warp_row + 15 + shift, keys);", "warp_row + shift, keys);"
    ),
    Fault("upper-left instead of lower-right", KERNEL, "shift = keys - length;", "shift = 0;"),
    Fault("one key tile too few", KERNEL, "(visited.end + BlockN - 1) / BlockN", "visited.end / BlockN"),
    Fault(
        "rows of the next sequence written", KERNEL, "if (row < rows && column", "if (row <= rows && column"
    ),
    Fault("padding columns written", KERNEL, "if (row < rows && column < call.value_dim)", "if (row < rows)"),
    Fault("tiles of a later group skipped", ORDER, "index / group * order.heads_at_once", "0"),
    Fault("rounds overlap", ORDER, "grid - 1 - block", "grid - block"),
    Fault("strides of the heads", LAUNCHER, "p.value_head, no_keys", "p.value_row, no_keys"),
    Fault(
        "rows of the tensor",
        LAUNCHER,
        "p.heads, p.query_head, p.tokens_q,",
        "p.heads, p.query_head, p.tokens_q - 1,",
    ),
]
