"""Faults that the cases of `step_prepare` must find."""

from __future__ import annotations

from tests.plugins.cuda.mutation import Fault

KERNEL = "include/slipway/step_prepare.cuh"

FAULTS = [
    Fault("rows that did not run advance", KERNEL, "if (row.status != kStepRunning) return;", ""),
    Fault("accepted drafts do not count", KERNEL, "p.num_accepted != nullptr ? p.num_accepted[b] : 0", "0"),
    Fault(
        "tokens beyond the limit",
        KERNEL,
        "accepted + 1 < row.remaining ? accepted + 1 : row.remaining",
        "accepted + 1",
    ),
    Fault(
        "goes on after a stop token",
        KERNEL,
        "row.num_new < most && row.status == kStepWaiting",
        "row.num_new < most && row.status != kStepFailed",
    ),
    Fault(
        "stop tokens of another sequence",
        KERNEL,
        "p.stop_tokens[int64_t(b) * p.stops + i]",
        "p.stop_tokens[i]",
    ),
    Fault("the last stop token is missed", KERNEL, "i < p.stops; i++", "i < p.stops - 1; i++"),
    Fault(
        "a place without a stop token stops",
        KERNEL,
        "if (stop == token)",
        "if (stop < 0 || stop == token)",
    ),
    Fault("no token is a token", KERNEL, "if (token < 0) {", "if (token < -1) {"),
    Fault(
        "tokens before none are lost",
        KERNEL,
        "      row.status = kStepFailed;\n",
        "      row.status = kStepFailed, row.num_new = 0;\n",
    ),
    Fault("tokens given are not counted", KERNEL, "p.num_sampled[b] += row.num_new", "p.num_sampled[b] += 1"),
    Fault(
        "exhausted before stopped",
        KERNEL,
        "if (row.status == kStepWaiting && row.remaining <= 0)",
        "if (row.remaining <= 0)",
    ),
    Fault(
        "one token more than allowed",
        KERNEL,
        "row.status == kStepWaiting && row.remaining <= 0",
        "row.status == kStepWaiting && row.remaining < 0",
    ),
    Fault("the length lags", KERNEL, "row.past += row.num_new, ", "row.past += row.num_new > 1, "),
    Fault(
        "block of the position after",
        KERNEL,
        "const int index = position / p.block_size;",
        "const int index = (position + 1) / p.block_size;",
    ),
    Fault("table read past its columns", KERNEL, "index < p.max_blocks ?", "index <= p.max_blocks ?"),
    Fault(
        "block table of another sequence",
        KERNEL,
        "p.block_table[int64_t(b) * p.max_blocks + index]",
        "p.block_table[index]",
    ),
    Fault("block 0 is no block", KERNEL, "return block < 0 ? -1", "return block <= 0 ? -1"),
    Fault("no block, but a token", KERNEL, " || slot_of(p, b, row.past) < 0) return 0;", ") return 0;"),
    Fault("a draft more than may be needed", KERNEL, "count < row.remaining &&", "count <= row.remaining &&"),
    Fault(
        "drafts behind the end of drafts",
        KERNEL,
        "p.draft_tokens[int64_t(b) * p.drafts + count - 1] >= 0 && ",
        "",
    ),
    Fault("drafts without a block", KERNEL, " && slot_of(p, b, row.past + count) >= 0)", ")"),
    Fault(
        "drafts shifted",
        KERNEL,
        "p.draft_tokens[int64_t(b) * p.drafts + i - 1];",
        "p.draft_tokens[int64_t(b) * p.drafts + i % p.drafts];",
    ),
    Fault(
        "no barrier before the sums are read",
        KERNEL,
        "  if (lane == 31) warp_sums[warp] = sum;\n  __syncthreads();",
        "  if (lane == 31) warp_sums[warp] = sum;",
    ),
    Fault(
        "no barrier before they are written again",
        KERNEL,
        "  __syncthreads();  // warp_sums may",
        "  // warp_sums may",
    ),
    Fault(
        "sums of the warps before include this one", KERNEL, "if (w < warp) before", "if (w <= warp) before"
    ),
    Fault(
        "the scan stops short",
        KERNEL,
        "for (int i = 1; i < 32; i *= 2) {\n    const int before",
        "for (int i = 1; i < 16; i *= 2) {\n    const int before",
    ),
    Fault("lanes take from beyond the warp", KERNEL, "if (lane >= i) sum += before;", "sum += before;"),
    Fault("rounds do not add up", KERNEL, "    begin += total;\n", "    begin = total;\n"),
    Fault(
        "threads leave before the next round",
        KERNEL,
        "if (b >= p.batch) continue;",
        "if (b >= p.batch) return;",
    ),
    Fault(
        "the end of the last sequence is not written",
        KERNEL,
        "if (threadIdx.x == 0) p.cu_seqlens[p.batch] = begin;",
        "",
    ),
    Fault(
        "padding begins a row late",
        KERNEL,
        "for (int i = begin + int(threadIdx.x);",
        "for (int i = begin + 1 + int(threadIdx.x);",
    ),
    Fault("padding has a slot", KERNEL, "p.slot_mapping[i] = -1;", "p.slot_mapping[i] = 0;"),
    Fault(
        "wanted rows run into the next sequence", KERNEL, "start + (i < count ? i : count - 1)", "start + i"
    ),
    Fault("wanted rows of nobody", KERNEL, "count == 0 ? 0 : start", "start"),
    Fault("running is not said", KERNEL, "if (count > 0) row.status = kStepRunning;", ""),
]
