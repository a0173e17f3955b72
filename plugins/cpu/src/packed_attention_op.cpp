// PackedAttention: from a node's inputs to kernels on the session's threads.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "kernels.h"
#include "packed_ops.h"

namespace slipway::cpu {
namespace {

using ort::InvalidArgument;
using ort::Tensor;

// Places of the inputs, as in plugins/schemas.py.
enum Input : size_t { kQuery, kKey, kValue, kCumulativeLengths, kBias, kCos, kSin, kPositions };

void read_rows(const ort::Call& call, PackedAttention& attention) {
  const Tensor query = call.input(kQuery), key = call.input(kKey), value = call.input(kValue);
  const int64_t heads = attention.num_heads, kv_heads = attention.kv_heads;
  if (query.rank != 2 || bool(key) != bool(value)) {
    throw InvalidArgument(
        "query has shape " + describe(query) +
        "; [tokens, width] is needed, and key and value must both be given, or both be absent");
  }
  if (heads < 1 || kv_heads < 1) throw InvalidArgument("num_heads and kv_num_heads must be positive");
  attention.tokens = int(query.shape[0]);
  attention.query = query.as<const float>();
  attention.query_stride = query.shape[1];
  if (!key) {
    const int64_t parts = heads + 2 * kv_heads, size = query.shape[1] / parts;
    if (size * parts != query.shape[1]) {
      throw InvalidArgument("query, packed with key and value, has shape " + describe(query) +
                            "; its rows must be " + std::to_string(parts) + " heads");
    }
    attention.head_dim = attention.value_dim = int(size);
    attention.key = attention.query + heads * size;
    attention.value = attention.key + kv_heads * size;
    attention.key_stride = attention.value_stride = attention.query_stride;
    return;
  }
  const bool rows =
      key.rank == 2 && value.rank == 2 && key.shape[0] == query.shape[0] && value.shape[0] == query.shape[0];
  if (!rows || query.shape[1] % heads || key.shape[1] * heads != query.shape[1] * kv_heads ||
      value.shape[1] % kv_heads) {
    throw InvalidArgument("query has shape " + describe(query) + ", key " + describe(key) + ", value " +
                          describe(value) + "; they must be rows of " + std::to_string(heads) + ", " +
                          std::to_string(kv_heads) + " and " + std::to_string(kv_heads) + " heads");
  }
  attention.head_dim = int(query.shape[1] / heads);
  attention.value_dim = int(value.shape[1] / kv_heads);
  attention.key = key.as<const float>();
  attention.value = value.as<const float>();
  attention.key_stride = key.shape[1];
  attention.value_stride = value.shape[1];
}

void read_bias(const ort::Call& call, PackedAttention& attention) {
  const Tensor bias = call.input(kBias);
  if (!bias) return;
  const size_t axes = bias.rank;
  const bool square =
      (axes == 3 || (axes == 4 && bias.shape[0] == 1)) && bias.shape[axes - 1] == bias.shape[axes - 2];
  const int64_t heads = square ? bias.shape[axes - 3] : 0;
  if (heads != 1 && heads != attention.num_heads) {
    throw InvalidArgument("bias has shape " + describe(bias) +
                          "; [1 or num_heads, length, length] is needed");
  }
  attention.bias = bias.as<const float>();
  attention.bias_heads = int(heads);
  attention.bias_size = int(bias.last());
}

void read_rotary(const ort::Call& call, PackedAttention& attention) {
  const Tensor cos = call.input(kCos), sin = call.input(kSin), positions = call.input(kPositions);
  if (!cos && !sin) return;
  // A leading axis of 1 says no more than an absent one.
  const size_t axes = cos.rank;
  const bool table = axes == 2 || (axes == 3 && cos.shape[0] == 1);
  if (!sin || !positions || !table || sin.rank != axes ||
      !std::equal(cos.shape, cos.shape + axes, sin.shape) || positions.rank != 1 ||
      positions.shape[0] != attention.tokens) {
    throw InvalidArgument("cos_cache has shape " + describe(cos) + ", sin_cache " + describe(sin) +
                          ", position_ids " + describe(positions) +
                          "; [positions, rotary_dim / 2] twice and [tokens] are needed");
  }
  attention.rotary_half = int(cos.last());
  attention.max_positions = int(cos.rows());
  attention.cos = cos.as<const float>();
  attention.sin = sin.as<const float>();
  attention.positions = positions.as<const int32_t>();
}

void run_kernels(const ort::Call& call, PackedAttention& attention) {
  static const int threads = int(std::max(1u, std::thread::hardware_concurrency()));
  thread_local std::vector<PackedItem> items;  // a session may run on several threads at once
  thread_local std::vector<float> turned;
  plan_work(attention, threads, items);
  const Kernels& kernels = active_kernels();
  if (attention.rotary_half > 0) {
    const int live = attention.live_tokens();
    const size_t needed = size_t(live) * attention.kv_heads * attention.head_dim;
    if (turned.size() < needed) turned.resize(needed);
    attention.turned_key = turned.data();
    constexpr int kTokensPerPiece = 64;
    auto turn = [&](size_t piece) {
      const int first = int(piece) * kTokensPerPiece;
      kernels.turn_packed_keys(attention, first, std::min(live, first + kTokensPerPiece));
    };
    call.parallel_for(size_t(live + kTokensPerPiece - 1) / kTokensPerPiece, turn);
  }
  std::atomic<bool> enough_memory{true};
  const PackedItem* work = items.data();
  auto attend = [&](size_t i) {
    if (!kernels.attend_packed(attention, work[i])) enough_memory = false;
  };
  call.parallel_for(items.size(), attend);
  if (!enough_memory) throw std::bad_alloc();
}

}  // namespace

void run_packed_attention(const PackedAttentionAttributes& attributes, const ort::Call& call) {
  PackedAttention attention;
  attention.num_heads = int(attributes.num_heads);
  attention.kv_heads = int(attributes.kv_num_heads);
  attention.left = int(attributes.left_window);
  attention.right = int(attributes.right_window);
  attention.rotary_interleaved = attributes.rotary_interleaved != 0;
  read_rows(call, attention);
  const Tensor lengths = call.input(kCumulativeLengths);
  if (lengths.rank != 1 || lengths.shape[0] < 1) {
    throw InvalidArgument("cu_seqlens has shape " + describe(lengths) + "; [batch + 1] is needed");
  }
  attention.batch = int(lengths.shape[0] - 1);
  attention.cumulative_lengths = lengths.as<const int32_t>();
  read_bias(call, attention);
  read_rotary(call, attention);
  attention.scale = attributes.scale != 0 ? attributes.scale : 1.0f / std::sqrt(float(attention.head_dim));
  const std::string problem = find_problem(attention);
  if (!problem.empty()) throw InvalidArgument(problem);

  const int64_t row = int64_t(attention.num_heads) * attention.value_dim;
  const int64_t shape[2] = {attention.tokens, row};
  attention.output = static_cast<float*>(call.output(0, shape, 2));
  const int64_t live = attention.live_tokens();
  std::memset(attention.output + live * row, 0, size_t((attention.tokens - live) * row) * sizeof(float));
  run_kernels(call, attention);
}

}  // namespace slipway::cpu
