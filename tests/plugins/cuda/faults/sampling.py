"""Faults that the cases of `sampling` must find."""

from __future__ import annotations

from tests.plugins.cuda.mutation import Fault

DEFINES = ("SLIPWAY_ONLY_FLOAT16", "SLIPWAY_SAMPLING_GROUPS=64")

PHILOX = "include/slipway/philox.cuh"
WEIGHT = "include/slipway/sampling_weight.cuh"
SEARCH = "include/slipway/sampling_search.cuh"
ROWS = "include/slipway/sampling_rows.cuh"
SURVEY = "include/slipway/sampling_survey.cuh"
PLAN = "include/slipway/sampling_plan.cuh"
RESOLVE = "include/slipway/sampling_resolve.cuh"
KERNEL = "include/slipway/sampling.cuh"
LAUNCHER = "csrc/sampling.cu"

FAULTS = [
    Fault("nine rounds", PHILOX, "round < 10", "round < 9"),
    Fault("only the product's low half", PHILOX, "__umul64hi(number, total) << 11 | (number * total) >> 53", "(number * total) >> 53"),
    Fault("weights of another unit", WEIGHT, "+ 32 + 24 - kWeightBits", "+ 33 + 24 - kWeightBits"),
    Fault("a distance of -0", WEIGHT, "temperature)) & 0x7fffffffu;", "temperature));"),
    Fault("no barrier after digits are cleared", SEARCH, "    __syncthreads();\n    DigitRun run", "    DigitRun run"),
    Fault("no barrier before digits are read", SEARCH, "    run.flush();\n    __syncthreads();\n", "    run.flush();\n"),
    Fault("no barrier before the result is read", SEARCH, "    __syncthreads();\n    found = memory->found;", "    found = memory->found;"),
    Fault("the last run is not added", SEARCH, "    run.flush();\n", ""),
    Fault("a carry is lost", SEARCH, "(before + own < own ? 1 : 0)", "0u"),
    Fault("the target of the first pass in all", SEARCH, "target - (kMeasure == Measure::kCount ? u64(found.count_less) : found.weight_less)", "target"),
    Fault("upper digits are not compared", SEARCH, "      if (shift < 24 && (key ^ found.key) >> (shift + 8) != 0) return;\n", ""),
    Fault("a sum that is the target does not reach it", SEARCH, "upto >= target", "upto > target"),
    Fault("one too far in a lane's run", SEARCH, "(next = value(place.index)) < target", "(next = value(place.index)) <= target"),
    Fault("lanes add up what is right of them", SEARCH, "if (lane >= apart) upto += left;", "if (lane < 32 - apart) upto += left;"),
    Fault("ragged rows are read in quads", ROWS, "wide((adjusted != nullptr ? p.vocab : p.row_stride) % 4 == 0)", "wide(p.vocab % 4 == 0)"),
    Fault("tokens beyond the vocabulary", ROWS, "if (index < row.vocab) f(index", "f(index"),
    Fault("read beyond the vocabulary", ROWS, "at + i < vocab ? to_float(row[at + i]) : -INFINITY", "to_float(row[at + i])"),
    Fault("slot -1 is a slot", ROWS, "slot >= 0 && slot < p.slots", "slot < p.slots"),
    Fault("quads of another lane", ROWS, "part + lane_index() * 4;", "part + lane_index() * 2;"),
    Fault("the later of equals is the largest", SURVEY, "if (value > own.value) own.value = value", "if (value >= own.value) own.value = value"),
    Fault("the later lane of equals", SURVEY, "b.index < a.index", "b.index > a.index"),
    Fault("NaN is usable", SURVEY, "own.unusable |= !(value < INFINITY);  // NaN too", "own.unusable |= value == INFINITY;"),
    Fault("all rows have the first one's groups", PLAN, "key_at(w.group_max[int64_t(row) * d.groups + i])", "key_at(w.group_max[i] + 3.0f)"),
    Fault("a bias for every token", SURVEY, "if (a.bias_ids[i] == index) value", "value"),
    Fault("the bias list has no end", SURVEY, "i < bias_length && a.bias_ids[i] >= 0", "i < bias_length"),
    Fault("no barrier before biases are marked", SURVEY, "    __syncthreads();\n    for (int i = int(threadIdx.x); i < p.bias_length", "    for (int i = int(threadIdx.x); i < p.bias_length"),
    Fault("tokens of the prompt are not penalized", SURVEY, "if (count != 0) value = value", "if (times > 0) value = value"),
    Fault("frequency counts once", SURVEY, "__fmaf_rn(-a.frequency, float(times), value)", "__fsub_rn(value, a.frequency)"),
    Fault("the mask forbids", SURVEY, "&& !(a.allowed[index / 32]", "&& (a.allowed[index / 32]"),
    Fault("candidates are counted on", SURVEY, "  if (thread == 0) w.candidate_count[row] = 0;\n", ""),
    Fault("bins are added to", SURVEY, "w.bin_count[int64_t(row) * kBins + i] = 0, w", "w"),
    Fault("only the first warp's largest", SURVEY, "for (int i = 1; i < d.warps; i++)", "for (int i = 1; i < 1; i++)"),
    Fault("min-p does not bound bins", PLAN, "      if (key > plan.key_limit) return;\n      const int bin = bin_of(key, plan.bins);\n      const u64", "      const int bin = bin_of(key, plan.bins);\n      const u64"),
    Fault("min-p does not bound top-k", PLAN, "plan.key_limit = min(f.key_limit, found.key);", "plan.key_limit = found.key;"),
    Fault("min-p of 1 is -0", PLAN, "float(0.0 - log(", "float(-log("),
    Fault("the bound of one group more", PLAN, "radix_search<Measure::kCount>(&m->search, u64(f.top_k)", "radix_search<Measure::kCount>(&m->search, u64(f.top_k - 1) + (f.top_k < 2)"),
    Fault("top-p of the whole mass", PLAN, "mass = max(warp_total(last, weight), u64(1));", ""),
    Fault("top-k counts certain tokens too", PLAN, "int(u64(f.top_k) - certain_count)", "f.top_k"),
    Fault("the first bin in question is certain", PLAN, "if (bin < plan.first_bin) weight", "if (bin <= plan.first_bin) weight"),
    Fault("the last bin in question is left out", PLAN, "bin <= plan.last_bin && lists", "bin < plan.last_bin && lists"),
    Fault("no barrier before the plan is read", PLAN, "  __syncthreads();\n  const RowPlan plan = *shared;", "  const RowPlan plan = *shared;"),
    Fault("no barrier before bins are added", PLAN, "weights.add(plan.bins, far_weight);\n  __syncthreads();", "weights.add(plan.bins, far_weight);"),
    Fault("segments of the top-k begin with a weight", PLAN, "segment] = 0;", "segment] = 1ull << kWeightBits;"),
    Fault("a nucleus of nothing", PLAN, "max(needed, u64(1))", "needed"),
    Fault("all equals are among the top-k", RESOLVE, "    if (f.top_p >= 1.0f && same < found.count_same) kept.index = last_of_equals(memory, found.key, same, tokens);\n", ""),
    Fault("all equals are in the nucleus", RESOLVE, "    if (same < found.count_same) kept.index", "    if (false) kept.index"),
    Fault("certain tokens count for nothing", RESOLVE, "kept.weight) - plan.certain_weight;", "kept.weight);"),
    Fault("one equal too few", RESOLVE, "(target - found.weight_less + one - 1) / one", "(target - found.weight_less) / one"),
    Fault("the last of equals is out", RESOLVE, "token_index <= index)", "token_index < index)"),
    Fault("all bins are in question", RESOLVE, "          if (bin < plan.first_bin || bin > plan.last_bin) return;\n", ""),
    Fault("a list that is not whole is read", RESOLVE, "? int(plan.in_question) : -1)", "? int(plan.in_question) : d.capacity)"),
    Fault("another word", KERNEL, "u64(o.position[row])).word[0]", "u64(o.position[row])).word[2]"),
    Fault("every row's first position", KERNEL, "u64(o.position[row])", "u64(o.position[0])"),
    Fault("no barrier after segments are added", KERNEL, "  __syncthreads();\n  if (threadIdx.x >= 32) return -1;", "  if (threadIdx.x >= 32) return -1;"),
    Fault("no barrier before segments are added", KERNEL, "segment_weights[i]; });\n  __syncthreads();", "segment_weights[i]; });"),
    Fault("counts go beyond their bits", KERNEL, "if ((count & 0x7fff) != 0x7fff) counts", "counts"),
    Fault("the chosen token is not counted", KERNEL, "counts != nullptr && token >= 0) count_token", "counts == nullptr && token >= 0) count_token"),
    Fault("equals have one rank", KERNEL, "m->key[j] < m->key[i] || (m->key[j] == m->key[i] && m->index[j] < m->index[i])", "m->key[j] < m->key[i]"),
    Fault("all equals are listed", KERNEL, "key == found.key && index > last", "key == found.key && index > kMaxVocab"),
    Fault("log-probabilities of largest 0", KERNEL, "double(plan.largest) + log(", "log("),
    Fault("rows lie close", LAUNCHER, 'p.row_stride = a.stride("logits", 0)', "p.row_stride = p.vocab"),
    Fault("log-probabilities of adjusted logits", LAUNCHER, "raw.logits = p.logits", "raw = p, raw.logits = p.logits"),
]  # fmt: skip
