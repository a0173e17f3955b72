// PagedAttention: from a node's inputs to kernels on the session's threads.
#include "paged_attention_op.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "kernels.h"
#include "paged_attention.h"

namespace slipway::cpu {
namespace {

using ort::InvalidArgument;
using ort::Tensor;

// Places of the inputs, as in plugins/schemas.py.
enum Input : size_t {
  kQuery,
  kKey,
  kValue,
  kKeyCache,
  kValueCache,
  kCumulativeLengths,
  kPastLengths,
  kBlockTable,
  kCos,
  kSin,
  kSlots,
  kSink,
  kQueryNorm,
  kKeyNorm,
  kKeyScale,
  kValueScale,
  kMetadata,
  kPositions,
  kAlibi,
  kTreeMask,
  kDistanceBias
};

void expect_shape(const char* name, const Tensor& tensor, std::initializer_list<int64_t> shape) {
  bool same = tensor.rank == shape.size();
  size_t i = 0;
  std::string wanted = "[";
  for (int64_t size : shape) {
    same = same && tensor.shape[i] == size;
    wanted += (i ? ", " : "") + std::to_string(size);
    ++i;
  }
  if (!same)
    throw InvalidArgument(std::string(name) + " has shape " + describe(tensor) + "; " + wanted +
                          "] is needed");
}

void expect_rank(const char* name, const Tensor& tensor, size_t rank) {
  if (tensor.rank == rank) return;
  throw InvalidArgument(std::string(name) + " has shape " + describe(tensor) + "; " + std::to_string(rank) +
                        " axes are needed");
}

void refuse_reserved_inputs(const ort::Call& call) {
  const struct {
    Input place;
    const char* name;
  } reserved[] = {{kQueryNorm, "q_norm_weight"},
                  {kKeyNorm, "k_norm_weight"},
                  {kTreeMask, "tree_mask"}};
  for (const auto& input : reserved) {
    if (call.input(input.place))
      throw InvalidArgument(std::string(input.name) + " is not supported on CPU yet");
  }
}

void read_pools(const ort::Call& call, PagedAttention& attention, Tensor& keys, Tensor& values) {
  keys = call.input(kKeyCache);
  values = call.input(kValueCache);
  expect_rank("key_cache", keys, 4);
  expect_rank("value_cache", values, 4);
  attention.num_blocks = int(keys.shape[0]);
  attention.block_size = int(keys.shape[1]);
  attention.head_dim = int(keys.shape[3]);
  attention.value_dim = int(values.shape[3]);
  expect_shape("key_cache", keys, {keys.shape[0], keys.shape[1], attention.kv_heads, keys.shape[3]});
  expect_shape("value_cache", values, {keys.shape[0], keys.shape[1], attention.kv_heads, values.shape[3]});
  if (keys.type != values.type) throw InvalidArgument("key_cache and value_cache have different types");
  switch (keys.type) {
    case ort::kFloat: attention.cache_type = CacheType::kFloat32; break;
    case ort::kFloat16: attention.cache_type = CacheType::kFloat16; break;
    case ort::kBFloat16: attention.cache_type = CacheType::kBFloat16; break;
    case ort::kInt8: attention.cache_type = CacheType::kInt8; break;
    case ort::kFloat8E4m3: attention.cache_type = CacheType::kE4m3; break;
    default: throw InvalidArgument("the pools must be float32, float16, bfloat16, int8 or float8e4m3fn");
  }
  attention.key_cache = keys.data;
  attention.value_cache = values.data;
}

// With outputs for the pools the operator is functional: it copies them and writes to the copies. Without, it
// writes through its inputs.
void read_pool_outputs(const ort::Call& call, PagedAttention& attention, const Tensor& keys,
                       const Tensor& values) {
  const size_t element = keys.type == ort::kFloat ? 4 : holds_codes(attention.cache_type) ? 1 : 2;
  if (void* copy = call.output(1, keys.shape, keys.rank)) {
    std::memcpy(copy, keys.data, size_t(keys.rows() * keys.last()) * element);
    attention.key_cache = copy;
  }
  if (void* copy = call.output(2, values.shape, values.rank)) {
    std::memcpy(copy, values.data, size_t(values.rows() * values.last()) * element);
    attention.value_cache = copy;
  }
}

void read_rows(const ort::Call& call, PagedAttention& attention) {
  const Tensor query = call.input(kQuery), key = call.input(kKey), value = call.input(kValue);
  expect_rank("query", query, 2);
  attention.tokens = int(query.shape[0]);
  const int64_t query_size = int64_t(attention.num_heads) * attention.head_dim;
  const int64_t key_size = int64_t(attention.kv_heads) * attention.head_dim;
  const int64_t value_size = int64_t(attention.kv_heads) * attention.value_dim;
  attention.query = query.as<const float>();
  if (bool(key) != bool(value)) throw InvalidArgument("key and value must both be given, or both be absent");
  if (key) {
    expect_shape("query", query, {query.shape[0], query_size});
    expect_shape("key", key, {query.shape[0], key_size});
    expect_shape("value", value, {query.shape[0], value_size});
    attention.key = key.as<const float>();
    attention.value = value.as<const float>();
    attention.query_stride = query_size;
    attention.key_stride = key_size;
    attention.value_stride = value_size;
    return;
  }
  if (attention.head_dim != attention.value_dim) {
    throw InvalidArgument("packed query, key and value need one head size; the pools have " +
                          std::to_string(attention.head_dim) + " and " + std::to_string(attention.value_dim));
  }
  expect_shape("query (packed with key and value)", query, {query.shape[0], query_size + 2 * key_size});
  attention.key = attention.query + query_size;
  attention.value = attention.key + key_size;
  attention.query_stride = attention.key_stride = attention.value_stride = query_size + 2 * key_size;
}

void read_step(const ort::Call& call, PagedAttention& attention) {
  const Tensor past = call.input(kPastLengths), cumulative = call.input(kCumulativeLengths);
  const Tensor table = call.input(kBlockTable), slots = call.input(kSlots);
  expect_rank("past_seqlens", past, 1);
  expect_rank("block_table", table, 2);
  attention.batch = int(past.shape[0]);
  attention.max_blocks = int(table.shape[1]);
  expect_shape("cumulative_sequence_length", cumulative, {past.shape[0] + 1});
  expect_shape("block_table", table, {past.shape[0], table.shape[1]});
  expect_shape("slot_mapping", slots, {attention.tokens});
  attention.past_lengths = past.as<const int32_t>();
  attention.cumulative_lengths = cumulative.as<const int32_t>();
  attention.block_table = table.as<const int32_t>();
  attention.slots = slots.as<const int32_t>();
}

void read_rotary(const ort::Call& call, bool interleaved, PagedAttention& attention) {
  const Tensor cos = call.input(kCos), sin = call.input(kSin), positions = call.input(kPositions);
  if (!cos || !sin || !positions) {
    throw InvalidArgument("do_rotary is 1: cos_cache, sin_cache and position_ids are needed");
  }
  expect_rank("cos_cache", cos, 2);
  expect_shape("sin_cache", sin, {cos.shape[0], cos.shape[1]});
  expect_shape("position_ids", positions, {attention.tokens});
  attention.rotary_half = int(cos.shape[1]);
  attention.max_positions = int(cos.shape[0]);
  attention.rotary_interleaved = interleaved;
  attention.cos = cos.as<const float>();
  attention.sin = sin.as<const float>();
  attention.positions = positions.as<const int32_t>();
}

void read_score_inputs(const ort::Call& call, PagedAttention& attention) {
  if (const Tensor sink = call.input(kSink)) {
    expect_shape("head_sink", sink, {attention.num_heads});
    attention.sinks = sink.as<const float>();
  }
  if (const Tensor slopes = call.input(kAlibi)) {
    expect_shape("alibi_slopes", slopes, {attention.num_heads});
    attention.alibi_slopes = slopes.as<const float>();
  }
  if (const Tensor bias = call.input(kDistanceBias)) {
    expect_rank("distance_bias", bias, 2);
    expect_shape("distance_bias", bias, {attention.num_heads, std::max<int64_t>(1, bias.shape[1])});
    attention.distances = int(bias.shape[1]);
    attention.distance_bias = bias.as<const float>();
  }
}

// Scales of pools of codes: both or none, and for such pools alone.
void read_pool_scales(const ort::Call& call, PagedAttention& attention) {
  const Tensor keys = call.input(kKeyScale), values = call.input(kValueScale);
  const bool codes = holds_codes(attention.cache_type);
  if (bool(keys) != codes || bool(values) != codes) {
    throw InvalidArgument(codes ? "pools of int8 and float8e4m3fn need k_scale and v_scale"
                                : "k_scale and v_scale go with pools of int8 and float8e4m3fn, and these are not");
  }
  if (!codes) return;
  expect_shape("k_scale", keys, {attention.kv_heads});
  expect_shape("v_scale", values, {attention.kv_heads});
  attention.key_scales = keys.as<const float>();
  attention.value_scales = values.as<const float>();
  for (int head = 0; head < attention.kv_heads; ++head) {
    if (!(attention.key_scales[head] > 0) || !(attention.value_scales[head] > 0)) {
      throw InvalidArgument("k_scale or v_scale of head " + std::to_string(head) + " is not above zero");
    }
  }
}

void run_kernels(const ort::Call& call, const PagedAttention& attention) {
  static const int threads = int(std::max(1u, std::thread::hardware_concurrency()));
  thread_local std::vector<WorkItem> items;  // a session may run on several threads at once
  plan_work(attention, threads, items);
  const Kernels& kernels = active_kernels();

  // All new rows are written before any is read: sequences may share blocks.
  constexpr int kTokensPerPiece = 32;
  const int live = attention.live_tokens();
  auto prepare = [&](size_t piece) {
    const int first = int(piece) * kTokensPerPiece;
    kernels.prepare(attention, first, std::min(live, first + kTokensPerPiece));
  };
  call.parallel_for(size_t(live + kTokensPerPiece - 1) / kTokensPerPiece, prepare);

  std::atomic<bool> enough_memory{true};
  const WorkItem* work = items.data();
  auto attend = [&](size_t i) {
    if (!kernels.attend(attention, work[i])) enough_memory = false;
  };
  call.parallel_for(items.size(), attend);
  if (!enough_memory) throw std::bad_alloc();
}

}  // namespace

void run_paged_attention(const PagedAttentionAttributes& attributes, const ort::Call& call) {
  PagedAttention attention;
  Tensor keys, values;
  refuse_reserved_inputs(call);
  attention.num_heads = int(attributes.num_heads);
  attention.kv_heads = int(attributes.kv_num_heads);
  attention.softcap = attributes.softcap;
  attention.window = int(attributes.local_window_size);
  read_pools(call, attention, keys, values);
  read_rows(call, attention);
  read_step(call, attention);
  read_score_inputs(call, attention);
  read_pool_scales(call, attention);
  if (attributes.do_rotary) read_rotary(call, attributes.rotary_interleaved != 0, attention);
  attention.scale = attributes.scale != 0 ? attributes.scale : 1.0f / std::sqrt(float(attention.head_dim));

  const std::string problem = find_problem(attention);
  if (!problem.empty()) throw InvalidArgument(problem);
  read_pool_outputs(call, attention, keys, values);

  const int64_t row = int64_t(attention.num_heads) * attention.value_dim;
  const int64_t shape[2] = {attention.tokens, row};
  attention.output = static_cast<float*>(call.output(0, shape, 2));
  const int64_t live = attention.live_tokens();
  std::memset(attention.output + live * row, 0, size_t((attention.tokens - live) * row) * sizeof(float));

  thread_local std::vector<float> turned_query;
  const size_t needed = size_t(live) * attention.num_heads * attention.padded_head_dim();
  if (turned_query.size() < needed) turned_query.resize(needed);
  attention.turned_query = turned_query.data();
  thread_local std::vector<float> bias_rows;
  if (attention.distance_bias) lay_out_distance_bias(attention, bias_rows);
  run_kernels(call, attention);
}

}  // namespace slipway::cpu
