// Packed variable-length attention, exact, tile by tile (FlashAttention-2, arXiv 2307.08691): the form for
// every chip from sm_80 on, with mma.sync and cp.async.
//
// A block of four warps computes a tile of query rows of one head, each warp 16 * RowTiles rows of it, and
// walks over the tiles of keys that any of its rows sees. Keys and values have one buffer each and are copied
// in turn: the values of a tile arrive while its scores are computed, the keys of the next while the softmax
// and the second product are. So shared memory stays small enough for two blocks on a multiprocessor, which
// hide each other's barriers.
//
// A row's result does not depend on what else is in the call: tiles begin at fixed rows and keys of the
// sequence, and tiles in which a row sees nothing leave its state as it is, bit by bit.
#pragma once
#include "slipway/attention_mma.cuh"
#include "slipway/flash_attention_params.cuh"
#include "slipway/query_tiles.cuh"
#include "slipway/scores.cuh"
#include "slipway/softmax.cuh"

namespace slipway {

// Converts: for chips whose mma.sync has no E4M3 of its own, compute capabilities 9.0 to 11.0: the assembler
// makes of it a conversion of every fragment to float16 (seen in their machine code), which takes registers.
template <class T_, class Out_, int D_, int RowTiles_, int BlockN_, bool Converts = false>
struct FlashAttentionShape {
  using T = T_;      // of query, key and value: __half, __nv_bfloat16 or e4m3
  using Out = Out_;  // of the output; T where that has 16 bits
  static constexpr int kHeadSize = D_, kRowTiles = RowTiles_, kBlockN = BlockN_;
  static constexpr int kWarps = 4, kThreads = 32 * kWarps;
  static constexpr int kWarpRows = 16 * kRowTiles, kBlockM = kWarpRows * kWarps;
  static constexpr size_t kSharedBytes = size_t(kBlockM + 2 * kBlockN) * kHeadSize * sizeof(T);
  // E4M3 goes down to 2^-9 only: probabilities, at most 1, are raised by 2^8, which still fits below its 448.
  static constexpr int kShift = sizeof(T) == 1 ? 8 : 0;

  // Whether the launcher gives this shape to the chip that is compiled for.
  __device__ static constexpr bool runs_here() {
#ifdef __CUDA_ARCH__
    return sizeof(T) == 2 ||
           (__CUDA_ARCH__ >= 890 && Converts == (__CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1200));
#else
    return true;
#endif
  }
};

// Writes one row of 16 rows' accumulators, times `factor`: columns below `columns`, a multiple of 8.
template <class T, class Out, int D>
__device__ __forceinline__ void store_row(Out* row, const float (&output)[D / 8][4], int h, float factor,
                                          int columns, int lane) {
#pragma unroll
  for (int d = 0; d < D / 8; d += 2) {
    const float x0 = output[d][2 * h] * factor, x1 = output[d][2 * h + 1] * factor;
    const float y0 = output[d + 1][2 * h] * factor, y1 = output[d + 1][2 * h + 1] * factor;
    if constexpr (sizeof(T) == 2) {
      const int column = d * 8 + lane % 4 * 2;
      if (d * 8 < columns) *reinterpret_cast<uint32_t*>(row + column) = pack<Out>(x0, x1);
      if (d * 8 + 8 < columns) *reinterpret_cast<uint32_t*>(row + column + 8) = pack<Out>(y0, y1);
    } else if (d * 8 < columns) {  // even columns in the first block, odd ones in the second
      const int column = d * 8 + lane % 4 * 4;
      *reinterpret_cast<uint2*>(row + column) = {pack<Out>(x0, y0), pack<Out>(x1, y1)};
    }
  }
}

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads) flash_attention_kernel(FlashAttentionParams p) {
  using T = typename Shape::T;
  using Out = typename Shape::Out;
  constexpr int D = Shape::kHeadSize, BlockN = Shape::kBlockN, Blocks = BlockN / 8,
                RowTiles = Shape::kRowTiles;
#ifdef __CUDA_ARCH__
  if (!Shape::runs_here()) __trap();  // the rest is compiled away
#endif
  DYNAMIC_SMEM(shared);
  T* const query_tile = reinterpret_cast<T*>(shared);   // [kBlockM] rows of D
  T* const key_tile = query_tile + Shape::kBlockM * D;  // [BlockN] rows of D
  T* const value_tile = key_tile + BlockN * D;          // [BlockN] rows of D

  const QueryTile tile = find_query_tile(p.cu_seqlens_q, p.batch, p.tokens_q, Shape::kBlockM, blockIdx.x);
  if (tile.first < 0) return;
  const int head = blockIdx.y, kv_head = head / (p.heads / p.kv_heads);
  const bool is_sequence = tile.sequence < p.batch;
  const int key_begin = is_sequence ? p.cu_seqlens_k[tile.sequence] : 0;
  const int length = is_sequence ? p.cu_seqlens_k[tile.sequence + 1] - key_begin : 0;
  const int shift = length - tile.length;  // row i has position i + shift
  ptx::device_check(tile.begin >= 0 && tile.length >= 0 && tile.begin + tile.length <= p.tokens_q,
                    "cu_seqlens_q decreases, or goes beyond tokens_q");
  ptx::device_check(key_begin >= 0 && length >= 0 && key_begin + length <= p.tokens_k,
                    "cu_seqlens_k decreases, or goes beyond tokens_k");
  ptx::device_check(p.bias == nullptr || !is_sequence || (tile.length <= p.max_q && length <= p.max_k),
                    "a sequence is longer than max_q or max_k of bias");

  // The tiles of keys that the block visits.
  const int last_row = min(tile.first + Shape::kBlockM, tile.length) - 1;
  const KeyRange visited = visited_keys(p.mask, tile.first + shift, last_row + shift, length);
  const int first_tile = visited.begin / BlockN;
  const int end_tile = visited.begin < visited.end ? (visited.end + BlockN - 1) / BlockN : first_tile;

  float scale = p.mask.scale;
  if (p.query_scale != nullptr) scale *= p.query_scale[head];
  if (p.key_scale != nullptr) scale *= p.key_scale[kv_head];
  if constexpr (sizeof(T) == 1)
    scale = fmaxf(scale, 1e-30f);  // of tensors that are all zero: -inf must stay -inf

  auto load_keys = [&](int n0) {
    const int64_t at = (key_begin + n0) * p.key_row + kv_head * p.key_head;
    load_tile<T, D, BlockN, Shape::kThreads>(
        key_tile, static_cast<const T*>(p.key), p.head_dim, ptx::fresh_thread(),
        [&](int row) { return n0 + row < length ? at + row * p.key_row : -1; });
    ptx::cp_async_commit();
  };
  auto load_values = [&](int n0) {
    const int64_t at = (key_begin + n0) * p.value_row + kv_head * p.value_head;
    load_tile<T, D, BlockN, Shape::kThreads>(
        value_tile, static_cast<const T*>(p.value), p.value_dim, ptx::fresh_thread(),
        [&](int row) { return n0 + row < length ? at + row * p.value_row : -1; });
    ptx::cp_async_commit();
  };

  float output[RowTiles][D / 8][4] = {};
  OnlineSoftmax<Shape::kShift> softmax[RowTiles];

  if (first_tile < end_tile) {
    const int64_t at = (tile.begin + tile.first) * p.query_row + head * p.query_head;
    load_tile<T, D, Shape::kBlockM, Shape::kThreads>(
        query_tile, static_cast<const T*>(p.query), p.head_dim, threadIdx.x,
        [&](int row) { return tile.first + row < tile.length ? at + row * p.query_row : -1; });
    load_keys(first_tile * BlockN);
  }
  for (int n = first_tile; n < end_tile; n++) {
    // Nothing that follows from these is kept from one tile to the next: registers are dearer than a few
    // additions.
    const int thread = ptx::fresh_thread(), lane = thread % 32;
    const int warp_row = tile.first + thread / 32 * Shape::kWarpRows;
    const int warp_rows = min(Shape::kWarpRows, tile.length - warp_row);  // may be none
    const int position = warp_row + shift;                                // of the warp's first row
    const int n0 = n * BlockN;
    // A warp without rows, or whose rows see none of these keys, only helps to copy.
    const KeyRange seen = visited_keys(p.mask, position, position + warp_rows - 1, length);
    const bool works = warp_rows > 0 && n0 < seen.end && n0 + BlockN > seen.begin;
    float s[RowTiles][Blocks][4];

    ptx::cp_async_wait<0>();
    __syncthreads();  // the keys are there, and no warp reads the values of the tile before any more
    load_values(n0);
    if (works) multiply_query_key<T, D>(s, query_tile, thread / 32 * Shape::kWarpRows, key_tile, lane);

    ptx::cp_async_wait<0>();
    __syncthreads();  // the values are there, and no warp reads the keys any more
    if (n + 1 < end_tile) load_keys(n0 + BlockN);
    if (!works) continue;

    const int key = n0 + lane % 4 * 2;
    const ScoreMap map(p.mask, ptx::opaque(scale), p.bias != nullptr);
    if (map.changes) {
#pragma unroll
      for (int r = 0; r < RowTiles; r++) scale_scores(s[r], map);
      if (p.mask.alibi_slopes != nullptr) {
        const float slope = p.mask.alibi_slopes[head] * kLog2e;
#pragma unroll
        for (int i = 0; i < 2 * RowTiles; i++)
          add_alibi(s[i / 2], i % 2, slope, position + lane / 4 + 8 * i, key);
      }
      if (p.bias != nullptr) {
        const int64_t offset = ptx::opaque(tile.sequence) * p.bias_batch + head * p.bias_head;
        const int rows = min(tile.length, p.max_q), keys = min(length, p.max_k);
#pragma unroll
        for (int i = 0; i < 2 * RowTiles; i++) {
          const int row = position - shift + lane / 4 + 8 * i;
          if (row >= rows) break;
          if (p.bias_is_float32)
            add_bias(s[i / 2], i % 2, static_cast<const float*>(p.bias) + offset + row * p.bias_query, key,
                     keys);
          else
            add_bias(s[i / 2], i % 2, static_cast<const Out*>(p.bias) + offset + row * p.bias_query, key,
                     keys);
        }
      }
    }
    const KeyRange common = common_keys(p.mask, position, position + warp_rows - 1, length);
    if (n0 < common.begin || n0 + BlockN > common.end) {
#pragma unroll
      for (int i = 0; i < 2 * RowTiles; i++)
        hide_scores(s[i / 2], i % 2, visible_keys(p.mask, position + lane / 4 + 8 * i, length), key);
    }
#pragma unroll
    for (int r = 0; r < RowTiles; r++) {
      float alpha[2];
      softmax[r].update(s[r], map.factor, alpha);
      // The maximum seldom grows after the first tiles; times 1 would change no bit.
      if (!__any_sync(0xffffffffu, alpha[0] != 1.f || alpha[1] != 1.f)) continue;
#pragma unroll
      for (int d = 0; d < D / 8; d++) {
        output[r][d][0] *= alpha[0], output[r][d][1] *= alpha[0];
        output[r][d][2] *= alpha[1], output[r][d][3] *= alpha[1];
      }
    }
    multiply_probability_value<T, D>(output, s, value_tile, lane);
  }

  const int thread = ptx::fresh_thread(), lane = thread % 32;
  const int warp_row = tile.first + thread / 32 * Shape::kWarpRows;
  const int warp_rows = min(Shape::kWarpRows, tile.length - warp_row);
  if (warp_rows <= 0) return;
  const int begin = p.cu_seqlens_q[ptx::opaque(tile.sequence)];  // tile.begin: registers are dearer
  float sink = -INFINITY;
  if (p.head_sink != nullptr && is_sequence)
    sink = p.sink_is_float32 ? static_cast<const float*>(p.head_sink)[head]
                             : to_float(static_cast<const Out*>(p.head_sink)[head]);
  const float value_scale = p.value_scale != nullptr ? p.value_scale[kv_head] : 1.f;
  Out* const out = static_cast<Out*>(p.output) + head * int64_t(p.value_dim);
#pragma unroll
  for (int r = 0; r < RowTiles; r++) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const RowEnd end = softmax[r].finish(h, sink);
      const int row = 16 * r + 8 * h + lane / 4;
      if (row >= warp_rows) continue;
      const int64_t token = begin + warp_row + row;
      if (p.log_sum_exp != nullptr && lane % 4 == 0)
        p.log_sum_exp[int64_t(head) * p.tokens_q + token] = end.log_sum_exp;
      store_row<T, Out, D>(out + token * p.heads * p.value_dim, output[r], h, end.inverse * value_scale,
                           p.value_dim, lane);
    }
  }
}

}  // namespace slipway
