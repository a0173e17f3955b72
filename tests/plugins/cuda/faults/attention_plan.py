"""Faults that the cases of `attention_plan` must find."""

from __future__ import annotations

from tests.plugins.cuda.mutation import Fault

KERNEL = "include/slipway/attention_plan_kernel.cuh"
LAYOUT = "include/slipway/attention_plan.cuh"

FAULTS = [
    Fault(
        "a scan's totals are overwritten",
        KERNEL,
        "  __syncthreads();  // the last scan's totals",
        "  // the last",
    ),
    Fault("a warp's sum without its last lane", KERNEL, "if (lane == 31) scratch", "if (lane == 30) scratch"),
    Fault("a scan adds the warp itself", KERNEL, "if (w < warp) value[n]", "if (w <= warp) value[n]"),
    Fault("a last chunk of one key left out", KERNEL, "(length + chunk - 1) / chunk;", "length / chunk;"),
    Fault(
        "the window one key short",
        KERNEL,
        "max(0, f.past + 1 - p.limits.window)",
        "max(0, f.past + 2 - p.limits.window)",
    ),
    Fault("a window past the last key", KERNEL, "min(seen / chunk, end - 1)", "seen / chunk"),
    Fault(
        "sequences of the most tokens not split",
        KERNEL,
        "f.new_tokens <= p.limits.max_split_tokens",
        "f.new_tokens < p.limits.max_split_tokens",
    ),
    Fault(
        "all chunks of the longest prefix shared",
        KERNEL,
        "s.chunks = min(s.chunks, covered[j]);",
        "s.chunks = covered[j];",
    ),
    Fault("prefixes of different leaders shared", KERNEL, "if (leader[j] != leader[sequence]) continue;", ""),
    Fault("a prefix of one", KERNEL, "if (shared.members > 1) {", "if (shared.members > 0) {"),
    Fault("prefixes longer than the past", KERNEL, "min(p.prefix_lens[b], f.past)", "p.prefix_lens[b]"),
    Fault(
        "shared though a window hides",
        KERNEL,
        "p.prefix_leader == nullptr || p.limits.window >= 0",
        "p.prefix_leader == nullptr",
    ),
    Fault("one chunk takes a slot", KERNEL, "if (f.chunks > 1) needed[0]", "if (f.chunks > 0) needed[0]"),
    Fault(
        "too many partial results",
        KERNEL,
        "if (total[0] <= slots) return chunk;",
        "if (total[0] <= 2 * slots) return chunk;",
    ),
    Fault(
        "rows beyond the last",
        KERNEL,
        "item.rows = min(kPlanRows, rows - item.first_row);",
        "item.rows = kPlanRows;",
    ),
    Fault(
        "a tile's keys end with its first row",
        KERNEL,
        "f.past + (item.first_row + item.rows - 1) / group + 1",
        "f.past + item.first_row / group + 1",
    ),
    Fault(
        "costs without the keys' begin",
        KERNEL,
        "/ kPlanKeys - item.key_begin / kPlanKeys + kPlanItemCost",
        "/ kPlanKeys + kPlanItemCost",
    ),
    Fault("workers begin a unit late", KERNEL, "int((rest + cost - 1) / cost)", "int(rest / cost) + 1"),
    Fault(
        "a worker begins before its share",
        KERNEL,
        "(whole * w + workers - 1) / workers",
        "whole * w / workers",
    ),
    Fault(
        "sequences not described when they are counted",
        KERNEL,
        "leader, covered, tokens);\n  __syncthreads();",
        "leader, covered, tokens);",
    ),
    Fault(
        "items read before they are written",
        KERNEL,
        "plan.token_sequence[t] = -1;\n  __syncthreads();",
        "plan.token_sequence[t] = -1;",
    ),
    Fault("padding has a sequence", KERNEL, "plan.token_sequence[t] = -1;", "plan.token_sequence[t] = 0;"),
    Fault(
        "parts behind the first 256 sequences begin anew",
        KERNEL,
        "for (int n = 0; n < 5; n++) before[n] += total[n];",
        "for (int n = 0; n < 5; n++) before[n] = total[n];",
    ),
    Fault(
        "shared tokens at their prefix's begin",
        KERNEL,
        "plan.shared_tokens[s.list + i]",
        "plan.shared_tokens[plan.sequences[b].list + i]",
    ),
    Fault(
        "items of a group's heads not counted",
        LAYOUT,
        "items = slots * ceil_div(group, kPlanRows)",
        "items = slots",
    ),
]
