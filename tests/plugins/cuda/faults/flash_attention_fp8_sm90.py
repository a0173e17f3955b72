"""Faults in what the form of `flash_attention` for sm_90a does for E4M3 alone."""

from __future__ import annotations

import torch

from plugins.checks._flash_attention import Setup, case_of
from plugins.cuda.case import Case
from tests.plugins.cuda.mutation import Fault

OPERATOR = "flash_attention"
DEFINES = ("SLIPWAY_ARCH_90A", "SLIPWAY_MAX_HEAD_SIZE=64", "SLIPWAY_ONLY_FLOAT16")
LEFT_OUT = ("flash_attention_half.cu", "flash_attention_fp8.cu", "flash_attention_sm90.cu")
COMPUTE_CAPABILITY = 90

SHAPE = "include/slipway/flash_attention_sm90_shape.cuh"
PRODUCER = "include/slipway/flash_attention_sm90_producer.cuh"
TRANSPOSE = "include/slipway/flash_attention_sm90_transpose.cuh"
CONSUMER = "include/slipway/flash_attention_sm90_consumer.cuh"
OUTPUT = "include/slipway/flash_attention_sm90_output.cuh"
MAPS = "include/slipway/tensor_map.cuh"


def cases() -> list[Case]:
    """Rings that wrap, sequences that end after an odd key and beside poison, both kinds of consumers, panels of
    transposed keys, columns that are padding, several heads of keys.
    """
    e4m3 = torch.float8_e4m3fn
    setups = (
        Setup((200, 20), (331, 71), causal=True, padding=3, dtype=e4m3, form=2),
        Setup((30,), (370,), heads=4, kv_heads=2, softcap=2.0, alibi=True, bias="h", dtype=e4m3, form=2),
        Setup((9, 17), (330, 33), kv_heads=2, value_dim=48, dtype=e4m3, form=2),
    )
    return [case_of(setup, seed=number) for number, setup in enumerate(setups)]


FAULTS = [
    # The ring between the copy engine and the warps that transpose.
    Fault(
        "loaded values not waited for",
        TRANSPOSE,
        "    ptx::mbarrier_wait(barriers.loaded_full(stage), parity);\n    const int keys = loaded_keys[stage];\n",
        "    const int keys = loaded_keys[stage];\n    ptx::mbarrier_wait(barriers.loaded_full(stage), parity);\n",
    ),
    Fault(
        "loaded values overwritten while they are read",
        PRODUCER,
        "    ptx::mbarrier_wait(empty, parity_of<Shape>(tile) ^ 1);\n",
        "    if (!Shape::kTransposes) ptx::mbarrier_wait(empty, parity_of<Shape>(tile) ^ 1);\n",
    ),
    Fault(
        "loaded values never freed",
        TRANSPOSE,
        "      ptx::mbarrier_arrive(barriers.loaded_empty(stage));\n",
        "",
    ),
    Fault(
        "one warp frees loaded values for all",
        SHAPE,
        "ptx::mbarrier_init(loaded_empty(s), Shape::kTransposers)",
        "ptx::mbarrier_init(loaded_empty(s), 1)",
    ),
    Fault(
        "values loaded where they are read",
        PRODUCER,
        "Shape::kTransposes ? Shape::kLoadedAt : Shape::kValueAt",
        "Shape::kValueAt",
    ),
    Fault(
        "the end is not told",
        PRODUCER,
        "    loaded_keys[stage] = -1;\n",
        "",
    ),
    Fault(
        "no end",
        PRODUCER,
        "    ptx::mbarrier_arrive(barriers.loaded_full(stage));\n",
        "",
    ),
    # The ring between them and the consumers.
    Fault(
        "transposed values overwritten while they are read",
        TRANSPOSE,
        "    ptx::mbarrier_wait(barriers.value_empty(stage), parity ^ 1);\n",
        "",
    ),
    Fault(
        "wrong parity of a free place",
        TRANSPOSE,
        "barriers.value_empty(stage), parity ^ 1",
        "barriers.value_empty(stage), parity",
    ),
    Fault("transposed values not fenced", TRANSPOSE, "    ptx::fence_proxy_async();\n", ""),
    Fault("other lanes not waited for", TRANSPOSE, "    __syncwarp();\n    if (lane", "    if (lane"),
    Fault(
        "one warp's part is enough",
        SHAPE,
        "Shape::kTransposes ? Shape::kTransposers : 1",
        "1",
    ),
    Fault("barriers beyond their place", SHAPE, "(kTransposes ? 6 : 4) * kStages", "4 * kStages"),
    Fault(
        "places overlap",
        SHAPE,
        "kLoadedAt = kValueAt + kStages * kTileBytes",
        "kLoadedAt = kValueAt + kTileBytes",
    ),
    # The transposition.
    Fault(
        "even columns for odd ones",
        TRANSPOSE,
        "__byte_perm(v[2], v[3], 0x7531)",
        "__byte_perm(v[2], v[3], 0x6420)",
    ),
    Fault(
        "keys of two blocks exchanged",
        TRANSPOSE,
        "__byte_perm(v[0], v[1], 0x6420), __byte_perm(v[2], v[3], 0x6420)",
        "__byte_perm(v[2], v[3], 0x6420), __byte_perm(v[0], v[1], 0x6420)",
    ),
    Fault("loaded values not swizzled", TRANSPOSE, "swizzled<Shape::kRowBytes>(", "int("),
    Fault("transposed values not swizzled", TRANSPOSE, "swizzled<Shape::kPanelKeys>(", "int("),
    Fault(
        "wrong panel of transposed values",
        TRANSPOSE,
        "key_chunk / KeyChunks * Shape::kKeyPanelBytes",
        "key_chunk / KeyChunks * Shape::kKeyPanelBytes / 2",
    ),
    Fault("odd columns over even ones", TRANSPOSE, "lane / 16 * 8 + lane % 8", "lane % 8"),
    Fault("a warp's part is left out", TRANSPOSE, "unit = warp;", "unit = warp + 1;"),
    Fault("keys of the next sequence stay", TRANSPOSE, "32 * group + 32 > keys", "32 * group > keys"),
    Fault("one key too many stays", TRANSPOSE, "key + 1 < keys ? v[i]", "key < keys ? v[i]"),
    Fault("one key too few stays", TRANSPOSE, "v[i] & 0xffffu : 0", "0 : 0"),
    Fault("all keys stay", PRODUCER, "min(item.keys - n * BlockN, BlockN)", "BlockN"),
    # The consumers.
    Fault(
        "probabilities not of the same keys as values",
        CONSUMER,
        "pack_e4m3(x[h], x[h + 1], y[h], y[h + 1])",
        "pack_e4m3(x[h], y[h], x[h + 1], y[h + 1])",
    ),
    Fault(
        "probabilities in the wrong registers",
        CONSUMER,
        "x = scores[4 * k + i / 2 * 2], &y",
        "x = scores[4 * k + i % 2 * 2], &y",
    ),
    Fault(
        "wrong step of the values",
        CONSUMER,
        "k / PanelSteps * Shape::kKeyPanelBytes + k % PanelSteps * 32 :",
        "k / PanelSteps * Shape::kKeyPanelBytes + k % PanelSteps * 16 :",
    ),
    Fault(
        "wrong swizzle of the values",
        CONSUMER,
        "Shape::kTransposes ? 16 : Shape::kPanelBytes, 8 * Row, kSwizzleOf<Row>",
        "Shape::kTransposes ? 16 : Shape::kPanelBytes, 8 * Row, kSwizzleOf<64>",
    ),
    Fault("queries not scaled", CONSUMER, "scale *= call.query_scale[work->head];", ";"),
    Fault("keys scaled as another head", CONSUMER, "call.key_scale[kv_head()]", "call.key_scale[0]"),
    Fault("values scaled as another head", CONSUMER, "call.value_scale[kv_head()]", "call.value_scale[0]"),
    Fault("probabilities beyond E4M3", SHAPE, "sizeof(T) == 1 ? 8 : 0", "sizeof(T) == 1 ? 12 : 0"),
    # The output.
    Fault(
        "columns not interleaved",
        OUTPUT,
        "pack<Out>(even[2 * h] * factors[h], odd[2 * h] * factors[h])",
        "pack<Out>(even[2 * h] * factors[h], even[2 * h + 1] * factors[h])",
    ),
    Fault("columns of another lane", OUTPUT, "d * 8 + lane % 4 * 4)", "d * 8 + lane / 8 * 4)"),
    Fault(
        "rows of the next sequence written", OUTPUT, "if (row >= rows) continue;", "if (row > rows) continue;"
    ),
    Fault("padding columns written", OUTPUT, "      if (d * 8 >= columns) continue;\n", ""),
    # The launch.
    Fault("rows of 64 bytes swizzled as 128", MAPS, "int(row_bytes)}", "128}"),
]
