"""Faults that the cases of `kv_write` must find."""

from __future__ import annotations

import torch

from plugins.cuda.case import Case
from tests.plugins.cuda.mutation import Fault

KERNEL = "include/slipway/kv_write_kernel.cuh"
RUNS = "include/slipway/runs.cuh"
ROTARY = "include/slipway/rotary.cuh"
LAUNCHER = "csrc/kv_write.cu"

DEFINES = ("SLIPWAY_ONLY_FLOAT16",)


def chosen(case: Case) -> bool:
    """Cases that the smaller build can run."""
    return case.tensors["key"].dtype == torch.float16


FAULTS = [
    Fault("a slot of -1 is written", KERNEL, "(is_query || slot >= 0)", "(is_query || slot >= -1)"),
    Fault("queries without a slot are left out", KERNEL, "(is_query || slot >= 0)", "slot >= 0"),
    Fault("padding is written", KERNEL, "exists && token < live &&", "exists &&"),
    Fault("one row of padding is written", KERNEL, "token < live", "token <= live"),
    Fault("the last block's threads run on", KERNEL, "exists = token < p.tokens", "exists = true"),
    Fault("values are taken for keys", KERNEL, "(place >= plan.parts[2].first_head)", "0"),
    Fault(
        "first value head is a key",
        KERNEL,
        "place >= plan.parts[2].first_head",
        "place > plan.parts[2].first_head",
    ),
    Fault(
        "queries are at the slot",
        KERNEL,
        "int64_t(is_query ? token : slot)",
        "int64_t(is_query ? slot : slot)",
    ),
    Fault("keys are at the token", KERNEL, "int64_t(is_query ? token : slot)", "int64_t(token)"),
    Fault("head 0 is written for all", KERNEL, "int64_t(head) * part.target_head_stride", "0"),
    Fault("second run at the wrong half", KERNEL, "s.second = half + s.pair", "s.second = half + s.pair + 1"),
    Fault("partial rotary begins a run late", KERNEL, "(half + kRun - 1) / kRun * 2", "half / kRun * 2"),
    Fault(
        "runs are not clipped", KERNEL, "s.second_count = clipped(size - s.second)", "s.second_count = kRun"
    ),
    Fault("pairs are not clipped", KERNEL, "s.pairs = clipped(half - s.pair)", "s.pairs = kRun"),
    Fault("all pairs turn", KERNEL, "if (i < s.pairs) turn(x[2 * i]", "turn(x[2 * i]"),
    Fault(
        "pairs of the other kind", KERNEL, "  if (interleaved) {\n#pragma", "  if (!interleaved) {\n#pragma"
    ),
    Fault(
        "sine of the wrong sign",
        ROTARY,
        "add(multiply(a, cos), -multiply(b, sin))",
        "add(multiply(a, cos), multiply(b, sin))",
    ),
    Fault(
        "b is turned with the new a",
        ROTARY,
        "  const float turned = add(multiply(a, cos), -multiply(b, sin));\n  b = ",
        "  const float turned = a = add(multiply(a, cos), -multiply(b, sin));\n  b = ",
    ),
    Fault(
        "angles of the position before",
        KERNEL,
        "position = p.position_ids[token]",
        "position = p.position_ids[token > 0 ? token - 1 : 0]",
    ),
    Fault(
        "table of float read as T",
        KERNEL,
        "if (p.rotary.float_table) load_angles<float>",
        "if (false) load_angles<float>",
    ),
    Fault("scale of another head", KERNEL, "part.scale[head * part.scale_stride]", "part.scale[0]"),
    Fault("scale multiplies", KERNEL, "factor = 1.0f / part.scale", "factor = part.scale"),
    Fault(
        "group maximum incomplete",
        KERNEL,
        "for (int i = 1; i < lanes; i *= 2) x = fmaxf",
        "for (int i = 1; i < lanes / 2; i *= 2) x = fmaxf",
    ),
    Fault(
        "group sum incomplete",
        KERNEL,
        "for (int i = 1; i < lanes; i *= 2) x += ",
        "for (int i = 2; i < lanes; i *= 2) x += ",
    ),
    Fault("maximum without the sign", KERNEL, "fmaxf(most, fabsf(x[i]))", "fmaxf(most, x[i])"),
    Fault("tiny scales overflow", KERNEL, "scale < kLeastScale", "scale <= 0.0f"),
    Fault(
        "scale at the token, not the slot",
        KERNEL,
        "part.token_scale[int64_t(slot) * p.kv_heads",
        "part.token_scale[int64_t(token) * p.kv_heads",
    ),
    Fault(
        "some lanes leave before the shuffles",
        KERNEL,
        "  if (turns) turn_share",
        "  if (!wanted) return;\n  if (turns) turn_share",
    ),
    Fault(
        "the weight of the norm is left out",
        KERNEL,
        "multiply(multiply(x[i], factor), weights[i])",
        "multiply(x[i], factor)",
    ),
    Fault("mean over padded lanes", KERNEL, "/ float(part.size)", "/ float(16 * lanes)"),
    Fault(
        "values are normed",
        LAUNCHER,
        "value.source = p.value, value.target = p.value_cache;",
        "value.source = p.value, value.target = p.value_cache, value.weight = p.key_norm_weight;",
    ),
    Fault(
        "accesses wider than a half allows",
        LAUNCHER,
        "head_stride * bytes, half * bytes,",
        "head_stride * bytes,",
    ),
    Fault(
        "accesses wider than strides allow",
        LAUNCHER,
        "token_stride * bytes, head_stride * bytes, half",
        "half",
    ),
    Fault("too few lanes", LAUNCHER, "(1 << plan.lanes_log2) < lanes", "(2 << plan.lanes_log2) < lanes"),
    Fault(
        "elements of a run in the wrong place",
        RUNS,
        "const uint32_t bits = reinterpret_cast<const Bits<T>*>(from)[i];",
        "const uint32_t bits = reinterpret_cast<const Bits<T>*>(from)[i ^ 1];",
    ),
    Fault(
        "words beyond the count",
        RUNS,
        "if (i * Run<T>::kPerWord >= count) continue;\n      Vector",
        "if (i * Run<T>::kPerWord > count) continue;\n      Vector",
    ),
    Fault("cu_seqlens one too early", LAUNCHER, '+ a.dim("batch")', '+ a.dim("batch") - 1'),
]
