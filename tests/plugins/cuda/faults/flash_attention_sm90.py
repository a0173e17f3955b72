"""Faults that the form of `flash_attention` for sm_90a must not survive."""

from __future__ import annotations

from plugins.checks._flash_attention import Setup, case_of
from plugins.cuda.case import Case
from tests.plugins.cuda.mutation import Fault

OPERATOR = "flash_attention"
DEFINES = ("SLIPWAY_ARCH_90A", "SLIPWAY_MAX_HEAD_SIZE=128", "SLIPWAY_ONLY_FLOAT16")
LEFT_OUT = ("flash_attention_half.cu", "flash_attention_fp8.cu", "flash_attention_fp8_sm90.cu")
COMPUTE_CAPABILITY = 90

SHAPE = "include/slipway/flash_attention_sm90_shape.cuh"
PRODUCER = "include/slipway/flash_attention_sm90_producer.cuh"
CONSUMER = "include/slipway/flash_attention_sm90_consumer.cuh"
OUTPUT = "include/slipway/flash_attention_sm90_output.cuh"
ORDER = "include/slipway/work_order.cuh"
LAUNCHER = "csrc/flash_attention_sm90_launch.hpp"


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
        CONSUMER,
        "    ptx::mbarrier_wait(barriers.key_full(stage_of<Shape>(tile)), parity_of<Shape>(tile));\n",
        "",
    ),
    Fault(
        "values not waited for",
        CONSUMER,
        "    ptx::mbarrier_wait(barriers.value_full(stage_of<Shape>(tile)), parity_of<Shape>(tile));\n",
        "",
    ),
    Fault(
        "keys overwritten while they are read",
        PRODUCER,
        "    ptx::mbarrier_wait(barriers.key_empty(stage), parity_of<Shape>(tile) ^ 1);\n",
        "",
    ),
    Fault(
        "values overwritten while they are read",
        PRODUCER,
        "    ptx::mbarrier_wait(empty, parity_of<Shape>(tile) ^ 1);\n",
        "",
    ),
    Fault(
        "queries overwritten while they are read",
        PRODUCER,
        "        ptx::mbarrier_wait(barriers.query_empty(g), query_parity);\n        const int row",
        "        const int row",
    ),
    Fault(
        "queries not waited for",
        CONSUMER,
        "      ptx::mbarrier_wait(barriers.query_full(group), parity);\n",
        "",
    ),
    Fault(
        "wrong parity of a free stage",
        PRODUCER,
        "ptx::mbarrier_wait(barriers.key_empty(stage), parity_of<Shape>(tile) ^ 1)",
        "ptx::mbarrier_wait(barriers.key_empty(stage), parity_of<Shape>(tile))",
    ),
    Fault("parity changes every tile", SHAPE, "count / Shape::kStages & 1", "count & 1"),
    Fault("query parity stays", PRODUCER, "      query_parity ^= 1;\n", ""),
    Fault(
        "too few bytes expected",
        PRODUCER,
        "expect(full, Shape::kTileBytes)",
        "expect(full, Shape::kTileBytes - 16)",
    ),
    Fault(
        "too many bytes expected",
        PRODUCER,
        "barriers.query_full(g), Shape::kQueryBytes)",
        "barriers.query_full(g), Shape::kQueryBytes + 16)",
    ),
    Fault(
        "one warp frees a stage for all",
        SHAPE,
        "constexpr int warps = 4 * Shape::kConsumers;",
        "constexpr int warps = 4;",
    ),
    Fault("barriers unknown to the copy engine", SHAPE, "    ptx::mbarrier_fence_init();\n", ""),
    Fault(
        "keys freed before the product",
        CONSUMER,
        "        ptx::wgmma_wait<1>();\n        ptx::hold_registers(scores);\n        release_keys(count + 1);\n",
        "        release_keys(count + 1);\n        ptx::wgmma_wait<1>();\n        ptx::hold_registers(scores);\n",
    ),
    Fault(
        "values freed before the product",
        CONSUMER,
        "        ptx::wgmma_wait<0>();\n        ptx::hold_registers(output);\n"
        "        ptx::hold_registers(probabilities);\n        release_values(count);\n#pragma",
        "        release_values(count);\n        ptx::wgmma_wait<0>();\n        ptx::hold_registers(output);\n"
        "        ptx::hold_registers(probabilities);\n#pragma",
    ),
    Fault("scores read early", CONSUMER, "ptx::wgmma_wait<1>()", "ptx::wgmma_wait<2>()"),
    Fault(
        "output written early",
        CONSUMER,
        "        ptx::wgmma_wait<0>();\n        ptx::hold_registers(output);\n"
        "        ptx::hold_registers(probabilities);\n        release_values(count);\n#pragma",
        "        release_values(count);\n#pragma",
    ),
    Fault(
        "no fence before a product",
        CONSUMER,
        "    ptx::hold_registers(scores);\n    ptx::wgmma_fence();\n",
        "    ptx::hold_registers(scores);\n",
    ),
    Fault(
        "values of the next sequence are not zeroed",
        CONSUMER,
        "zero_values(count, work->keys - n * BlockN);",
        "{}",
    ),
    Fault(
        "one row too few is zeroed",
        CONSUMER,
        "zero_values(count, work->keys - n * BlockN)",
        "zero_values(count, work->keys + 1 - n * BlockN)",
    ),
    Fault(
        "zeros not fenced",
        CONSUMER,
        "    ptx::fence_proxy_async();\n    ptx::named_barrier_wait(kAllConsumers",
        "    ptx::named_barrier_wait(kAllConsumers",
    ),
    Fault(
        "zeros of the other consumers not waited for",
        CONSUMER,
        "    ptx::named_barrier_wait(kAllConsumers, Shape::kConsumerThreads);\n",
        "",
    ),
    Fault(
        "output not fenced",
        CONSUMER,
        "      ptx::fence_proxy_async();\n    }\n    release(",
        "    }\n    release(",
    ),
    Fault("output read before it is staged", OUTPUT, "  __syncwarp();\n", ""),
    Fault(
        "rows of the output permuted",
        OUTPUT,
        "(chunk ^ (row & 7)) * 16);",
        "chunk * 16);",
    ),
    Fault(
        "wrong step of the keys",
        CONSUMER,
        "k / PanelSteps * Shape::kPanelBytes + k % PanelSteps * 32",
        "k / PanelSteps * Shape::kPanelBytes + k % PanelSteps * 64",
    ),
    Fault(
        "wrong panel of the queries",
        CONSUMER,
        "k / PanelSteps * Shape::kQueryPanelBytes + k % PanelSteps * 32",
        "k / PanelSteps * Shape::kPanelBytes + k % PanelSteps * 32",
    ),
    Fault(
        "wrong step of the values",
        CONSUMER,
        "k * 16 * Row",
        "k * 8 * Row",
    ),
    Fault(
        "wrong panel of the values",
        CONSUMER,
        "Shape::kTransposes ? 16 : Shape::kPanelBytes, 8 * Row",
        "Shape::kTransposes ? 16 : 1024, 8 * Row",
    ),
    Fault(
        "values not transposed", CONSUMER, "ptx::wgmma<T, D, !Shape::kTransposes>", "ptx::wgmma<T, D, false>"
    ),
    Fault(
        "probabilities in the wrong registers",
        CONSUMER,
        "scores[2 * k + i / 2][h], scores[2 * k + i / 2][h + 1]",
        "scores[2 * k + i % 2][h], scores[2 * k + i % 2][h + 1]",
    ),
    Fault(
        "nobody has the first turn",
        CONSUMER,
        "ptx::named_barrier_arrive(kTurn, 256);  // the first turn",
        "{}  // the first turn",
    ),
    Fault("turns are not passed", CONSUMER, "        pass_turn();\n", ""),
    Fault("the last turn is left", CONSUMER, "    if (group == 0) wait_for_turn();", "    //"),
    Fault(
        "the output is not scaled down",
        CONSUMER,
        "output[d][2] *= alpha[1], output[d][3] *= alpha[1];",
        "output[d][2] *= alpha[1];",
    ),
    Fault(
        "mask of the first row for all", CONSUMER, "warp_row + 15 + shift, keys);", "warp_row + shift, keys);"
    ),
    Fault("upper-left instead of lower-right", CONSUMER, "shift = keys - length;", "shift = 0;"),
    Fault("one key tile too few", SHAPE, "(visited.end + BlockN - 1) / BlockN", "visited.end / BlockN"),
    Fault(
        "rows of the next sequence written", OUTPUT, "if (row < rows && column", "if (row <= rows && column"
    ),
    Fault("padding columns written", OUTPUT, "if (row < rows && column < columns)", "if (row < rows)"),
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
