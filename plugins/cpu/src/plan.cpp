// Checks of a call, and its work items.
#include <algorithm>
#include <string>

#include "paged_attention.h"

namespace slipway::cpu {
namespace {

std::string text(int64_t number) { return std::to_string(number); }

std::string find_size_problem(const PagedAttention& call) {
  if (call.num_heads < 1 || call.kv_heads < 1 || call.num_heads % call.kv_heads != 0) {
    return "num_heads is " + text(call.num_heads) + " and kv_num_heads is " + text(call.kv_heads) +
           "; both must be positive and num_heads a multiple of kv_num_heads";
  }
  if (call.head_dim < 1 || call.head_dim > kMaxHeadDim || call.value_dim < 1 ||
      call.value_dim > kMaxHeadDim) {
    return "the head size of keys is " + text(call.head_dim) + " and of values " + text(call.value_dim) +
           "; 1 to " + text(kMaxHeadDim) + " are supported";
  }
  if (call.rotary_half < 0 || 2 * call.rotary_half > call.head_dim) {
    return "cos_cache has " + text(call.rotary_half) +
           " columns; at most head_dim / 2 = " + text(call.head_dim / 2) + " fit";
  }
  if (call.window == 0 || call.window < -1) {
    return "local_window_size is " + text(call.window) + "; it must be -1 (off) or at least 1";
  }
  if (call.block_size < 1 || call.num_blocks < 0 || int64_t(call.num_blocks) * call.block_size > INT32_MAX) {
    return "the pools have " + text(call.num_blocks) + " blocks of " + text(call.block_size) +
           " tokens; slots must fit in 31 bits";
  }
  return "";
}

// Lengths and blocks of one sequence.
std::string find_sequence_problem(const PagedAttention& call, int sequence) {
  const int32_t start = call.cumulative_lengths[sequence], end = call.cumulative_lengths[sequence + 1];
  const std::string name = "sequence " + text(sequence);
  if (end < start || end > call.tokens) {
    return "cumulative_sequence_length of " + name + " goes from " + text(start) + " to " + text(end) +
           "; it must not decrease and must stay within the " + text(call.tokens) + " tokens";
  }
  const int64_t past = call.past_lengths[sequence], length = past + end - start;
  if (past < 0) return "past_seqlens of " + name + " is " + text(past) + "; it must not be negative";
  if (end == start) return "";
  if (length > int64_t(call.max_blocks) * call.block_size) {
    return name + " has " + text(length) + " tokens; its " + text(call.max_blocks) +
           " columns of block_table hold " + text(int64_t(call.max_blocks) * call.block_size);
  }
  const int64_t visible = call.window > 0 ? std::max<int64_t>(0, past + 1 - call.window) : 0;
  const int32_t* blocks = call.block_table + int64_t(sequence) * call.max_blocks;
  for (int64_t i = visible / call.block_size; i <= (length - 1) / call.block_size; ++i) {
    if (blocks[i] < 0 || blocks[i] >= call.num_blocks) {
      return "block_table[" + text(sequence) + ", " + text(i) + "] is " + text(blocks[i]) +
             "; the sequence needs that block, and the pools have blocks 0 to " + text(call.num_blocks - 1);
    }
  }
  return "";
}

std::string find_token_problem(const PagedAttention& call) {
  const int64_t slots = int64_t(call.num_blocks) * call.block_size;
  for (int token = 0; token < call.live_tokens(); ++token) {
    if (call.slots[token] < -1 || call.slots[token] >= slots) {
      return "slot_mapping[" + text(token) + "] is " + text(call.slots[token]) + "; slots are 0 to " +
             text(slots - 1) + ", or -1 for none";
    }
    if (call.rotary_half > 0 && (call.positions[token] < 0 || call.positions[token] >= call.max_positions)) {
      return "position_ids[" + text(token) + "] is " + text(call.positions[token]) +
             "; cos_cache and sin_cache have positions 0 to " + text(call.max_positions - 1);
    }
  }
  return "";
}

// Rows (tokens times query heads of a key head) of a prefill item: many, so that a key tile is turned once
// for all of them, but few enough to stay in cache and to keep every thread busy.
int tokens_per_item(const PagedAttention& call, int new_tokens) {
  const int rows = new_tokens >= 128 ? 96 : 48;
  return std::max(1, rows / call.group());
}

// Key heads of a decode item: all of them when there are sequences enough to go round (their rows lie side by
// side in memory), otherwise as few as it takes. At most 32 query heads, so that their state stays in cache.
int kv_heads_per_item(const PagedAttention& call, int decodes, int threads) {
  const int fitting = std::max(1, 32 / call.group());
  const int wanted_items = 2 * threads;
  const int splits = std::min(call.kv_heads, (wanted_items + decodes - 1) / std::max(1, decodes));
  return std::min(fitting, (call.kv_heads + splits - 1) / splits);
}

int64_t cost(const PagedAttention& call, const WorkItem& item) {
  return (int64_t(call.past_lengths[item.sequence]) + item.first_token + item.rows -
          call.cumulative_lengths[item.sequence]) *
         item.rows * item.kv_heads;
}

}  // namespace

std::string find_problem(const PagedAttention& call) {
  std::string problem = find_size_problem(call);
  if (!problem.empty()) return problem;
  if (call.cumulative_lengths[0] != 0) {
    return "cumulative_sequence_length starts with " + text(call.cumulative_lengths[0]) +
           "; it must start with 0";
  }
  for (int sequence = 0; sequence < call.batch; ++sequence) {
    problem = find_sequence_problem(call, sequence);
    if (!problem.empty()) return problem;
  }
  return find_token_problem(call);
}

void lay_out_distance_bias(PagedAttention& call, std::vector<float>& rows) {
  const size_t size = size_t(bias_row_size(call.distances)), needed = size * size_t(call.num_heads);
  if (rows.size() < needed) rows.resize(needed);
  for (int head = 0; head < call.num_heads; ++head) {
    const float* bias = call.distance_bias + int64_t(head) * call.distances;
    float* row = rows.data() + size_t(head) * size;
    for (int i = 0; i < int(size); ++i) {
      const int distance = kKeyTile + call.distances - 1 - i;
      row[i] = kLog2E * bias[std::max(0, std::min(distance, call.distances - 1))];
    }
  }
  call.bias_rows = rows.data();
}

void plan_work(const PagedAttention& call, int threads, std::vector<WorkItem>& items) {
  items.clear();
  int decodes = 0;
  for (int sequence = 0; sequence < call.batch; ++sequence) decodes += call.new_tokens(sequence) == 1;
  const int decode_heads = kv_heads_per_item(call, decodes, threads);
  for (int sequence = 0; sequence < call.batch; ++sequence) {
    const int start = call.cumulative_lengths[sequence], new_tokens = call.new_tokens(sequence);
    if (new_tokens == 1) {
      for (int head = 0; head < call.kv_heads; head += decode_heads) {
        items.push_back({sequence, start, 1, head, std::min(decode_heads, call.kv_heads - head)});
      }
      continue;
    }
    const int step = tokens_per_item(call, new_tokens);
    for (int token = 0; token < new_tokens; token += step) {
      for (int head = 0; head < call.kv_heads; ++head) {
        items.push_back({sequence, start + token, std::min(step, new_tokens - token), head, 1});
      }
    }
  }
  std::stable_sort(items.begin(), items.end(),
                   [&](const WorkItem& a, const WorkItem& b) { return cost(call, a) > cost(call, b); });
}

}  // namespace slipway::cpu
