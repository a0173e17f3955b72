// Runs all kernels on buffers of exact size, for the address and undefined-behaviour sanitizers.
//
// Every array is an allocation of its own, so one element too far is seen. Results are compared with sums in
// double precision written from the definition. Exit code 0: everything matched.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels.h"
#include "scalar_types.h"

namespace slipway::cpu {

double run_packed();       // sanitize_packed.cpp
double run_quantized();    // sanitize_quantized.cpp
double run_elementwise();  // sanitize_elementwise.cpp
bool conversions_hold();

namespace {

struct Sizes {
  int heads, kv_heads, head_dim, value_dim, block_size, rotary_half, window;
  float softcap;
  bool interleaved, sinks, alibi;
  CacheType cache;
  int distances = 0;  // of the distance bias; 0: none
};

// An exact allocation: the sanitizer guards both ends.
template <class T>
struct Exact {
  std::unique_ptr<T[]> data;
  size_t size;
  explicit Exact(size_t count) : data(new T[count]()), size(count) {}
  T& operator[](size_t i) { return data[i]; }
  T* get() { return data.get(); }
};

struct Sequence {
  int past, added;
};

int element_size(CacheType type) {
  return type == CacheType::kFloat32 ? 4 : holds_codes(type) ? 1 : 2;
}

// Of codes, in every head.
constexpr float kCodeScale = 0.03f;

float read(const unsigned char* pool, CacheType type, int64_t i) {
  switch (type) {
    case CacheType::kFloat16: return to_float(reinterpret_cast<const Half*>(pool)[i]);
    case CacheType::kBFloat16: return to_float(reinterpret_cast<const BFloat16*>(pool)[i]);
    case CacheType::kInt8: return kCodeScale * to_float(reinterpret_cast<const Int8*>(pool)[i]);
    case CacheType::kE4m3: return kCodeScale * to_float(reinterpret_cast<const E4m3*>(pool)[i]);
    default: return reinterpret_cast<const float*>(pool)[i];
  }
}

void write(unsigned char* pool, CacheType type, int64_t i, float x) {
  switch (type) {
    case CacheType::kFloat16: from_float(x, reinterpret_cast<Half*>(pool) + i); break;
    case CacheType::kBFloat16: from_float(x, reinterpret_cast<BFloat16*>(pool) + i); break;
    case CacheType::kInt8: from_float(x / kCodeScale, reinterpret_cast<Int8*>(pool) + i); break;
    case CacheType::kE4m3: from_float(x / kCodeScale, reinterpret_cast<E4m3*>(pool) + i); break;
    default: reinterpret_cast<float*>(pool)[i] = x;
  }
}

// One output row from the definition, in double precision; the new keys lie in the pools already.
void reference_row(const PagedAttention& call, int sequence, int token, int head,
                   std::vector<double>& output) {
  const int position = call.past_lengths[sequence] + token - call.cumulative_lengths[sequence];
  const int low = call.window > 0 ? std::max<int>(0, position + 1 - call.window) : 0;
  const int kv = head / call.group();
  const float* query = call.turned_query + (int64_t(token) * call.num_heads + head) * call.padded_head_dim();
  const double unscale = call.softcap > 0 ? 1.0 : 1.0 / 1.4426950408889634;
  const auto* keys = static_cast<const unsigned char*>(call.key_cache);
  const auto* values = static_cast<const unsigned char*>(call.value_cache);
  double total = call.sinks ? std::exp(double(call.sinks[head])) : 0;
  output.assign(call.value_dim, 0);
  for (int p = low; p <= position; ++p) {
    const int64_t block = call.block_table[int64_t(sequence) * call.max_blocks + p / call.block_size];
    const int64_t row = (block * call.block_size + p % call.block_size) * call.kv_heads + kv;
    double score = 0;
    for (int d = 0; d < call.head_dim; ++d) {
      // The query has the scale of codes in it already.
      score += double(query[d]) * read(keys, call.cache_type, row * call.head_dim + d) / (call.key_scales ? kCodeScale : 1);
    }
    score *= unscale;
    if (call.softcap > 0) score = call.softcap * std::tanh(score / call.softcap);
    if (call.alibi_slopes) score += call.alibi_slopes[head] * (p - position);
    if (call.distance_bias) {
      score += call.distance_bias[head * call.distances + std::min(position - p, call.distances - 1)];
    }
    const double weight = std::exp(score);
    total += weight;
    for (int d = 0; d < call.value_dim; ++d) {
      output[d] += weight * read(values, call.cache_type, row * call.value_dim + d);
    }
  }
  for (double& x : output) x /= total;
}

// One random step; returns the largest error, or a negative number when the call was refused.
double run_case(const Sizes& sizes, const std::vector<Sequence>& sequences, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  const int batch = int(sequences.size()), max_positions = 400;
  int tokens = 0, blocks = 0, max_blocks = 1;
  for (const Sequence& s : sequences) {
    const int needed = (s.past + s.added + sizes.block_size - 1) / sizes.block_size;
    tokens += s.added;
    blocks += needed;
    max_blocks = std::max(max_blocks, needed);
  }
  Exact<float> query(size_t(tokens) * sizes.heads * sizes.head_dim),
      key(size_t(tokens) * sizes.kv_heads * sizes.head_dim);
  Exact<float> value(size_t(tokens) * sizes.kv_heads * sizes.value_dim);
  Exact<float> output(size_t(tokens) * sizes.heads * sizes.value_dim);
  Exact<float> cos(size_t(max_positions) * sizes.rotary_half), sin(size_t(max_positions) * sizes.rotary_half);
  Exact<float> bias(size_t(sizes.heads) * sizes.distances), sinks(sizes.heads), slopes(sizes.heads),
      turned(size_t(tokens) * sizes.heads * ((sizes.head_dim + 15) / 16 * 16));
  Exact<int32_t> cumulative(batch + 1), past(batch), table(size_t(batch) * max_blocks), slots(tokens),
      positions(tokens);
  const size_t rows = size_t(blocks) * sizes.block_size * sizes.kv_heads;
  Exact<unsigned char> keys(rows * sizes.head_dim * element_size(sizes.cache));
  Exact<unsigned char> values(rows * sizes.value_dim * element_size(sizes.cache));
  for (Exact<float>* x : {&query, &key, &value, &sinks, &bias}) {
    for (size_t i = 0; i < x->size; ++i) (*x)[i] = normal(random);
  }
  for (size_t i = 0; i < rows * sizes.head_dim; ++i)
    write(keys.get(), sizes.cache, int64_t(i), normal(random));
  for (size_t i = 0; i < rows * sizes.value_dim; ++i)
    write(values.get(), sizes.cache, int64_t(i), normal(random));
  for (size_t i = 0; i < cos.size; ++i) {
    const double angle = double(i / sizes.rotary_half) / double(1 + i % sizes.rotary_half);
    cos[i] = float(std::cos(angle));
    sin[i] = float(std::sin(angle));
  }
  for (int h = 0; h < sizes.heads; ++h) slopes[h] = 0.1f * float(h + 1);
  int token = 0, next_block = blocks;
  for (int b = 0; b < batch; ++b) {
    const Sequence& s = sequences[b];
    past[b] = s.past;
    for (int i = 0; i < max_blocks; ++i) {
      const bool needed = i * sizes.block_size < s.past + s.added;
      table[size_t(b) * max_blocks + i] = needed ? --next_block : -1;
    }
    for (int p = s.past; p < s.past + s.added; ++p, ++token) {
      positions[token] = p;
      slots[token] =
          table[size_t(b) * max_blocks + p / sizes.block_size] * sizes.block_size + p % sizes.block_size;
    }
    cumulative[b + 1] = token;
  }

  PagedAttention call;
  call.tokens = tokens;
  call.batch = batch;
  call.max_blocks = max_blocks;
  call.num_heads = sizes.heads;
  call.kv_heads = sizes.kv_heads;
  call.head_dim = sizes.head_dim;
  call.value_dim = sizes.value_dim;
  call.block_size = sizes.block_size;
  call.num_blocks = blocks;
  call.rotary_half = sizes.rotary_half;
  call.max_positions = max_positions;
  call.rotary_interleaved = sizes.interleaved;
  call.window = sizes.window;
  call.scale = 1.0f / std::sqrt(float(sizes.head_dim));
  call.softcap = sizes.softcap;
  call.cache_type = sizes.cache;
  call.query = query.get();
  call.key = key.get();
  call.value = value.get();
  call.query_stride = int64_t(sizes.heads) * sizes.head_dim;
  call.key_stride = int64_t(sizes.kv_heads) * sizes.head_dim;
  call.value_stride = int64_t(sizes.kv_heads) * sizes.value_dim;
  call.key_cache = keys.get();
  call.value_cache = values.get();
  call.cumulative_lengths = cumulative.get();
  call.past_lengths = past.get();
  call.block_table = table.get();
  call.slots = slots.get();
  call.positions = positions.get();
  call.cos = cos.get();
  call.sin = sin.get();
  const std::vector<float> scales(size_t(sizes.kv_heads), kCodeScale);
  if (holds_codes(sizes.cache)) call.key_scales = call.value_scales = scales.data();
  call.sinks = sizes.sinks ? sinks.get() : nullptr;
  call.alibi_slopes = sizes.alibi ? slopes.get() : nullptr;
  std::vector<float> bias_rows;
  if (sizes.distances) {
    call.distance_bias = bias.get();
    call.distances = sizes.distances;
    lay_out_distance_bias(call, bias_rows);
  }
  call.turned_query = turned.get();
  call.output = output.get();

  const std::string problem = find_problem(call);
  if (!problem.empty()) {
    std::printf("refused: %s\n", problem.c_str());
    return -1;
  }
  const Kernels& kernels = active_kernels();
  kernels.prepare(call, 0, tokens);
  std::vector<WorkItem> items;
  plan_work(call, 2, items);
  for (const WorkItem& item : items) {
    if (!kernels.attend(call, item)) return -1;
  }
  double error = 0;
  std::vector<double> row;
  for (int b = 0; b < batch; ++b) {
    for (int t = cumulative[b]; t < cumulative[b + 1]; ++t) {
      for (int h = 0; h < sizes.heads; ++h) {
        reference_row(call, b, t, h, row);
        for (int d = 0; d < sizes.value_dim; ++d) {
          const double found = output[(size_t(t) * sizes.heads + h) * sizes.value_dim + d];
          error = std::max(error, std::isnan(found) ? 1e9 : std::fabs(found - row[d]));
        }
      }
    }
  }
  return error;
}

}  // namespace
}  // namespace slipway::cpu

int main() {
  using namespace slipway::cpu;
  const CacheType f32 = CacheType::kFloat32, f16 = CacheType::kFloat16, bf16 = CacheType::kBFloat16, i8 = CacheType::kInt8, e4m3 = CacheType::kE4m3;
  const Sizes cases[] = {
      {6, 2, 64, 64, 16, 32, -1, 0, false, false, false, f32},
      {3, 1, 128, 128, 8, 0, -1, 0, false, true, false, f16},
      {5, 1, 20, 12, 7, 5, 9, 0, true, false, true, f32},
      {7, 7, 17, 33, 1, 8, 3, 4, false, true, true, bf16},
      {8, 2, 80, 48, 32, 20, 70, 0, false, false, false, bf16},
      {1, 1, 1, 1, 256, 0, -1, 2, false, false, false, f16},
      {6, 2, 72, 40, 16, 36, -1, 0, false, false, false, i8},
      {4, 4, 16, 16, 4, 0, 50, 3, false, true, true, i8},
      {6, 2, 72, 40, 16, 36, -1, 0, false, false, false, e4m3},
      {5, 1, 20, 12, 7, 5, 9, 2, true, true, true, e4m3},
      {4, 2, 24, 24, 16, 0, -1, 0, false, false, false, f32, 70},
      {3, 3, 16, 16, 8, 0, -1, 2, false, true, false, f16, 1},
  };
  const std::vector<Sequence> sequences = {{37, 1}, {0, 23}, {5, 1},   {0, 1},
                                           {70, 9}, {0, 0},  {140, 1}, {3, 40}};
  int failures = conversions_hold() ? 0 : 1;
  for (int set = 1; set <= 4; ++set) {
    if (!slipway_cpu_force_isa(set)) {
      std::printf("instruction set %d is not here\n", set);
      continue;
    }
    unsigned seed = 1;
    for (const Sizes& sizes : cases) {
      const double error = run_case(sizes, sequences, seed++);
      const bool good = error >= 0 && error < 2e-5;
      failures += !good;
      std::printf("%s head_dim %d: largest error %.1e%s\n", slipway_cpu_isa(), sizes.head_dim, error,
                  good ? "" : " BAD");
    }
    const double error = run_elementwise();
    failures += !(error < 2e-5);
    std::printf("%s elementwise: largest error %.1e\n", slipway_cpu_isa(), error);
    const double packed = run_packed();
    failures += !(packed < 2e-5);
    std::printf("%s packed texts: largest error %.1e\n", slipway_cpu_isa(), packed);
    const double quantized = run_quantized();
    failures += !(quantized < 1e-6);
    std::printf("%s quantized products: largest error %.1e\n", slipway_cpu_isa(), quantized);
  }
  return failures == 0 ? 0 : 1;
}
