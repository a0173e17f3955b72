// PackedAttention and pooling on buffers of exact size, against sums in double precision.
#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "kernels.h"

namespace slipway::cpu {
namespace {

struct Sizes {
  int heads, kv_heads, head_dim, value_dim, left, right, bias_heads, rotary_half;
};

std::vector<float> numbers(std::mt19937& random, size_t count) {
  std::normal_distribution<float> normal;
  std::vector<float> made(count);
  for (float& x : made) x = normal(random);
  made.shrink_to_fit();
  return made;
}

// One head of a row of queries or keys, turned.
std::vector<double> turned(const PackedAttention& call, const float* head, int position) {
  std::vector<double> result(head, head + call.head_dim);
  const int half = call.rotary_half;
  for (int i = 0; i < half; ++i) {
    const double cos = call.cos[position * half + i], sin = call.sin[position * half + i];
    result[size_t(i)] = head[i] * cos - head[half + i] * sin;
    result[size_t(half + i)] = head[half + i] * cos + head[i] * sin;
  }
  return result;
}

// The largest difference of one output row from the definition.
double row_error(const PackedAttention& call, int text, int position, int head) {
  const int start = call.cumulative_lengths[text], length = call.length(text), kv = head / call.group();
  const auto query =
      turned(call, call.query + (start + position) * call.query_stride + head * call.head_dim, position);
  std::vector<double> output(static_cast<size_t>(call.value_dim));
  double total = 0;
  for (int key = 0; key < length; ++key) {
    if ((call.left >= 0 && key < position - call.left) || (call.right >= 0 && key > position + call.right))
      continue;
    const auto other = turned(call, call.key + (start + key) * call.key_stride + kv * call.head_dim, key);
    double score = 0;
    for (size_t d = 0; d < other.size(); ++d) score += query[d] * other[d];
    score *= call.scale;
    if (call.bias) {
      const int table = call.bias_heads == 1 ? 0 : head;
      score += call.bias[(table * call.bias_size + position) * call.bias_size + key];
    }
    total += std::exp(score);
    const float* value = call.value + (start + key) * call.value_stride + kv * call.value_dim;
    for (size_t d = 0; d < output.size(); ++d) output[d] += std::exp(score) * value[d];
  }
  double error = 0;
  const float* found = call.output + (int64_t(start + position) * call.num_heads + head) * call.value_dim;
  for (size_t d = 0; d < output.size(); ++d) {
    error = std::max(error, std::isnan(found[d]) ? 1e9 : std::fabs(found[d] - output[d] / total));
  }
  return error;
}

double run_case(const Sizes& sizes, unsigned seed) {
  std::mt19937 random(seed);
  const std::vector<int32_t> starts{0, 70, 71, 71, 80, 221};
  const int tokens = starts.back(), longest = 141;
  const auto query = numbers(random, size_t(tokens) * sizes.heads * sizes.head_dim);
  const auto key = numbers(random, size_t(tokens) * sizes.kv_heads * sizes.head_dim);
  const auto value = numbers(random, size_t(tokens) * sizes.kv_heads * sizes.value_dim);
  const auto bias = numbers(random, size_t(sizes.bias_heads) * longest * longest);
  const auto cos = numbers(random, size_t(longest) * sizes.rotary_half);
  const auto sin = numbers(random, size_t(longest) * sizes.rotary_half);
  std::vector<int32_t> positions;
  for (size_t b = 0; b + 1 < starts.size(); ++b) {
    for (int p = 0; p < starts[b + 1] - starts[b]; ++p) positions.push_back(p);
  }
  std::vector<float> turned_key(key.size()), output(size_t(tokens) * sizes.heads * sizes.value_dim);

  PackedAttention call;
  call.tokens = tokens;
  call.batch = int(starts.size()) - 1;
  call.num_heads = sizes.heads;
  call.kv_heads = sizes.kv_heads;
  call.head_dim = sizes.head_dim;
  call.value_dim = sizes.value_dim;
  call.left = sizes.left;
  call.right = sizes.right;
  call.scale = 1.0f / std::sqrt(float(sizes.head_dim));
  call.rotary_half = sizes.rotary_half;
  call.max_positions = longest;
  call.bias_heads = sizes.bias_heads;
  call.bias_size = longest;
  call.query = query.data();
  call.key = key.data();
  call.value = value.data();
  call.query_stride = int64_t(sizes.heads) * sizes.head_dim;
  call.key_stride = int64_t(sizes.kv_heads) * sizes.head_dim;
  call.value_stride = int64_t(sizes.kv_heads) * sizes.value_dim;
  call.cumulative_lengths = starts.data();
  call.bias = sizes.bias_heads ? bias.data() : nullptr;
  call.positions = positions.data();
  call.cos = cos.data();
  call.sin = sin.data();
  call.turned_key = sizes.rotary_half ? turned_key.data() : nullptr;
  call.output = output.data();
  if (!find_problem(call).empty()) return 1e9;

  const Kernels& kernels = active_kernels();
  if (sizes.rotary_half) kernels.turn_packed_keys(call, 0, tokens);
  std::vector<PackedItem> items;
  plan_work(call, 2, items);
  for (const PackedItem& item : items) {
    if (!kernels.attend_packed(call, item)) return 1e9;
  }
  double error = 0;
  for (int b = 0; b < call.batch; ++b) {
    for (int p = 0; p < call.length(b); ++p) {
      for (int h = 0; h < sizes.heads; ++h) error = std::max(error, row_error(call, b, p, h));
    }
  }
  std::vector<float> sum(static_cast<size_t>(call.query_stride));
  kernels.pool_rows(query.data(), tokens, call.query_stride, false, sum.data());
  for (size_t i = 0; i < sum.size(); ++i) {
    double wanted = 0;
    for (int t = 0; t < tokens; ++t) wanted += query[size_t(t) * sum.size() + i];
    error = std::max(error, std::fabs(wanted - sum[i]) / tokens);  // as a mean
  }
  return error;
}

}  // namespace

// The largest error of all cases.
double run_packed() {
  const Sizes cases[] = {{3, 3, 32, 32, -1, -1, 0, 0},
                         {4, 2, 20, 13, 9, 9, 4, 0},
                         {2, 1, 17, 33, -1, 0, 1, 8},
                         {1, 1, 1, 1, 2, 70, 0, 0}};
  double error = 0;
  unsigned seed = 1;
  for (const Sizes& sizes : cases) error = std::max(error, run_case(sizes, seed++));
  return error;
}

}  // namespace slipway::cpu
