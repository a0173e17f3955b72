// Checks of a PackedAttention call, and its work items.
#include <algorithm>
#include <string>

#include "packed_attention.h"
#include "paged_attention.h"

namespace slipway::cpu {
namespace {

// Query rows of an item: many, so that a key tile is turned once for all of them, few enough to stay in
// cache.
constexpr int kRowsPerItem = 128;

std::string text(int64_t number) { return std::to_string(number); }

// Tokens of an item of a text, about equal among its items.
int tokens_per_item(const PackedAttention& call, int length, int threads) {
  const int most = std::max(8, kRowsPerItem / call.group());
  int pieces = (length + most - 1) / most;
  // One short text alone: pieces for every thread, as long as a piece is worth waking one.
  const int heads = call.batch * call.kv_heads;
  if (heads * pieces < threads) pieces = std::min((threads + heads - 1) / heads, (length + 31) / 32);
  const int tokens = (length + pieces - 1) / pieces;
  return (tokens + 7) / 8 * 8;
}

int64_t cost(const PackedAttention& call, const PackedItem& item) {
  return int64_t(call.length(item.text)) * item.rows;
}

}  // namespace

std::string find_problem(const PackedAttention& call) {
  if (call.num_heads < 1 || call.kv_heads < 1 || call.num_heads % call.kv_heads != 0) {
    return "num_heads is " + text(call.num_heads) + " and kv_num_heads is " + text(call.kv_heads) +
           "; both must be positive and num_heads a multiple of kv_num_heads";
  }
  if (call.head_dim < 1 || call.head_dim > kMaxHeadDim || call.value_dim < 1 ||
      call.value_dim > kMaxHeadDim) {
    return "the head size of keys is " + text(call.head_dim) + " and of values " + text(call.value_dim) +
           "; 1 to " + text(kMaxHeadDim) + " are supported";
  }
  if (call.left < -1 || call.right < -1) {
    return "left_window is " + text(call.left) + " and right_window " + text(call.right) +
           "; each must be -1 (all) or a number of tokens";
  }
  if (2 * call.rotary_half > call.head_dim) {
    return "cos_cache has " + text(call.rotary_half) +
           " columns; at most head_dim / 2 = " + text(call.head_dim / 2) + " fit";
  }
  if (call.cumulative_lengths[0] != 0) {
    return "cu_seqlens starts with " + text(call.cumulative_lengths[0]) + "; it must start with 0";
  }
  for (int b = 0; b < call.batch; ++b) {
    const int32_t start = call.cumulative_lengths[b], end = call.cumulative_lengths[b + 1];
    if (end < start || end > call.tokens) {
      return "cu_seqlens of text " + text(b) + " goes from " + text(start) + " to " + text(end) +
             "; it must not decrease and must stay within the " + text(call.tokens) + " tokens";
    }
    if (call.bias && end - start > call.bias_size) {
      return "text " + text(b) + " has " + text(end - start) + " tokens; the bias is for " +
             text(call.bias_size);
    }
  }
  for (int token = 0; call.rotary_half > 0 && token < call.live_tokens(); ++token) {
    if (call.positions[token] < 0 || call.positions[token] >= call.max_positions) {
      return "position_ids[" + text(token) + "] is " + text(call.positions[token]) +
             "; cos_cache and sin_cache have positions 0 to " + text(call.max_positions - 1);
    }
  }
  return "";
}

void plan_work(const PackedAttention& call, int threads, std::vector<PackedItem>& items) {
  items.clear();
  for (int b = 0; b < call.batch; ++b) {
    const int length = call.length(b);
    if (length == 0) continue;
    const int step = tokens_per_item(call, length, threads);
    for (int first = 0; first < length; first += step) {
      for (int head = 0; head < call.kv_heads; ++head) {
        items.push_back({b, first, std::min(step, length - first), head});
      }
    }
  }
  std::stable_sort(items.begin(), items.end(),
                   [&](const PackedItem& a, const PackedItem& b) { return cost(call, a) > cost(call, b); });
}

}  // namespace slipway::cpu
