"""Faults that the cases of `speculative` must find; those of the distributions are sampling's."""

from __future__ import annotations

from tests.plugins.cuda.mutation import Fault

DEFINES = ("SLIPWAY_ONLY_FLOAT16",)

KERNEL = "include/slipway/speculative.cuh"
LAUNCHER = "csrc/speculative.cu"
ROWS = "csrc/sampling_distribution.cu"

FAULTS = [
    Fault("accepted by the number that draws", KERNEL, "words(place).word[1]", "words(place).word[0]"),
    Fault("drawn by the number that accepts", KERNEL, "random_below(words(place).word[0]", "random_below(words(place).word[1]"),
    Fault("accepted by the target alone", KERNEL, ".word[1]) * q * double", ".word[1]) * double"),
    Fault("accepted against the likeliest", KERNEL, "* double(target.kept.weight) < weight", "* double(1ull << kWeightBits) < weight"),
    Fault("one number for all places", KERNEL, "u64(s.position[request] + place)", "u64(s.position[request])"),
    Fault("the seed of the first request", KERNEL, "philox(s.seed[request]", "philox(s.seed[0]"),
    Fault("a rejected draft is followed by the target", KERNEL, "    rejected = true;\n", ""),
    Fault("the residual is the target", KERNEL, "return weight > taken ? weight - taken : 0;", "return weight;"),
    Fault("the residual wraps around", KERNEL, "return weight > taken ? weight - taken : 0;", "return weight - taken;"),
    Fault("a certain draft stays", KERNEL, "index == draft ? weight : 0", "0"),
    Fault("probabilities are halved", KERNEL, "const int down = 126", "const int down = 127"),
    Fault("a share of another total", KERNEL, "__umul64hi(fraction << 40, total)", "__umul64hi(fraction << 39, total)"),
    Fault("probabilities of the first draft", KERNEL, "(int64_t(request) * s.drafts + place) * p.vocab", "int64_t(request) * s.drafts * p.vocab"),
    Fault("greedy accepts all", KERNEL, "      if (draft != target.largest_index) break;\n", ""),
    Fault("no draft is a draft", KERNEL, "draft < 0 || draft >= p.vocab || ", ""),
    Fault("the token of the first row", KERNEL, "const Target target = s.targets[first_row + place];\n  int token", "const Target target = s.targets[first_row];\n  int token"),
    Fault("drafts beyond the end are written", KERNEL, "i < place ? drafts[i] : -1", "drafts[i < s.drafts ? i : 0]"),
    Fault("one draft too many counts", KERNEL, "s.accepted[request] = place;", "s.accepted[request] = place + 1;"),
    Fault("no barrier between sums and draw", KERNEL, "      __syncthreads();\n      total =", "      total ="),
    Fault("a warp's segment is the next one", KERNEL, "if (lane_index() == 0) segment_sum[segment] = weight;", "if (lane_index() == 0) segment_sum[d.segments - 1 - segment] = weight;"),
    Fault("rows have parameters of their own", LAUNCHER, 'p.rows_per_request = int(a.dim("drafts")) + 1;', "p.rows_per_request = 1;"),
    Fault("masks are not looked at", ROWS, 'p.allowed = a.data<const uint32_t>("allowed_tokens");', ""),
    Fault("rows without drafts' last", LAUNCHER, 'rows = a.dim("batch") * (a.dim("drafts") + 1);', 'rows = a.dim("batch") * a.dim("drafts");'),
]  # fmt: skip
