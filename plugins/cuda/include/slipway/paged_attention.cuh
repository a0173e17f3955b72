// Attention over a paged cache (Kwon et al. 2023, arXiv 2309.06180), with keys split into chunks (Flash-Decoding) and
// the query heads of a key head packed into one tile (arXiv 2305.13245).
//
// A fixed number of blocks works through the units of a plan (attention_plan.cuh). Tiles of keys and values stream
// through shared memory without a pause between units. An item of up to 16 rows (decode) and one of more (prefill,
// verification, shared prefixes) are computed in two ways that give each row the same bits:
//   wide:   each warp has 16 rows, all keys of a tile and all columns of the output;
//   narrow: all warps have the same 16 rows; each computes the scores of a quarter of the keys, then, with the
//           probabilities of all, a quarter of the columns.
// In both a row's maximum is that of whole tiles, the sum of its probabilities is kept in four parts (by quarters of
// the tile) which are added in the end, and every product adds up in the order of keys.
#pragma once
#include "slipway/paged_loader.cuh"
#include "slipway/paged_rows.cuh"

namespace slipway {

// Shared memory: what one form needs apart from the stages, then the stages.
template <class T, int D>
struct PagedScratch {
  static constexpr int kKeys = kTileKeys<D>;
  static constexpr size_t kQuery = D <= 128 ? 0 : size_t(D / 16) * kPagedThreads * sizeof(uint4);
  static constexpr size_t kProbabilities = 16 * kKeys * sizeof(T), kNumbers = kPagedWarps * 16 * sizeof(float);
  static constexpr size_t kPlaces = kPagedWarps * 16 * sizeof(RowPlace);
  static constexpr size_t kBytes = kQuery + kProbabilities + 2 * kNumbers + kPlaces;
  uint4* query;         // wide, D 256: QueryFragments' places
  T* probabilities;     // narrow: [16][kKeys]
  float *maxima, *sums;  // narrow: [kPagedWarps][16]
  RowPlace* places;      // [kPagedWarps][16]

  __device__ __forceinline__ explicit PagedScratch(unsigned char* smem) {
    query = reinterpret_cast<uint4*>(smem);
    probabilities = reinterpret_cast<T*>(smem + kQuery);
    maxima = reinterpret_cast<float*>(smem + kQuery + kProbabilities);
    sums = maxima + kPagedWarps * 16;
    places = reinterpret_cast<RowPlace*>(sums + kPagedWarps * 16);
  }
};

template <class T, PoolKind Kind, int D>
constexpr size_t paged_smem(int stages) {
  return PagedScratch<T, D>::kBytes + stages * PagedStage<T, Kind, D>::kBytes;
}

// No load of fragments is moved up over this. With heads of 256 the accumulators take half of a thread's registers, and
// the assembler, which sees one long run of loads and products, would fetch so far ahead that it runs out of them. What
// it costs is small: the first product after a fence may wait for its fragments, where no other one hides that.
template <int D>
__device__ __forceinline__ void fence_fragments() {
  if constexpr (D > 128) __syncwarp();
}

// Scores of 16 rows with 8 * Blocks keys of a tile, from `key` on; with scales a token these are multiplied in.
template <class T, PoolKind Kind, int D, int Blocks, class Query>
__device__ __forceinline__ void score_keys(float (&s)[Blocks][4], const Query& query,
                                           const PagedStage<T, Kind, D>& stage, int key, bool token_scales,
                                           int lane) {
  using Tile = PoolTile<T, Kind, D>;
#pragma unroll
  for (int n = 0; n < Blocks; n++) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.f;
#pragma unroll
  for (int step = 0; step < D / 16; step += Tile::kKeySteps) {
    uint32_t a[Tile::kKeySteps][4];
#pragma unroll
    for (int i = 0; i < Tile::kKeySteps; i++) query.fragment(a[i], step + i);
#pragma unroll
    for (int n = 0; n < Blocks; n++) {
      uint32_t b[Tile::kKeySteps][2];
      Tile::load_keys(b, stage.keys, key + 8 * n, step, lane);
#pragma unroll
      for (int i = 0; i < Tile::kKeySteps; i++) ptx::mma_m16n8k16<T>(s[n], a[i], b[i]);
    }
    fence_fragments<D>();
  }
  if constexpr (Kind != PoolKind::k16Bit) {
    if (!token_scales) return;
#pragma unroll
    for (int n = 0; n < Blocks; n++) {
      const float* scale = stage.key_scales + key + 8 * n + lane % 4 * 2;
      s[n][0] *= scale[0], s[n][1] *= scale[1], s[n][2] *= scale[0], s[n][3] *= scale[1];
    }
  }
}

// One row's running maximum; what its scores are to be lessened by, and its past results multiplied with.
__device__ __forceinline__ float advance_maximum(float& maximum, float tile_maximum, float& alpha) {
  const float m = fmaxf(maximum, tile_maximum);
  const float base = m == -INFINITY ? 0.f : m;  // a row without keys stays zero, and never -inf + inf
  alpha = ptx::exp2(maximum - base);
  maximum = m;
  return base;
}

// Probabilities of row h in blocks First to First + Count - 1, in place of their scores; returns their sum.
template <int First, int Count, int Blocks>
__device__ __forceinline__ float exponentiate(float (&s)[Blocks][4], int h, float factor, float base) {
  float part = 0.f;
#pragma unroll
  for (int n = First; n < First + Count; n++) {
#pragma unroll
    for (int i = 2 * h; i < 2 * h + 2; i++) {
      s[n][i] = ptx::exp2(fmaf(s[n][i], factor, -base));
      part += s[n][i];
    }
  }
  return part;
}

template <int Blocks>
__device__ __forceinline__ float row_maximum(const float (&s)[Blocks][4], int h) {
  float m = s[0][2 * h];
#pragma unroll
  for (int n = 0; n < Blocks; n++) m = fmaxf(m, fmaxf(s[n][2 * h], s[n][2 * h + 1]));
  return quad_max(m);
}

// Probabilities, each times the scale of its value where that is a token's. key: of the first block, in the tile.
template <class T, PoolKind Kind, int D, int Blocks>
__device__ __forceinline__ void scale_probabilities(float (&s)[Blocks][4], const PagedStage<T, Kind, D>& stage,
                                                    int key, bool token_scales, int lane) {
  if constexpr (Kind != PoolKind::k16Bit) {
    if (!token_scales) return;
#pragma unroll
    for (int n = 0; n < Blocks; n++) {
      const float* scale = stage.value_scales + key + 8 * n + lane % 4 * 2;
      const float even = scale[0] * kProbabilityLift, odd = scale[1] * kProbabilityLift;
      s[n][0] *= even, s[n][1] *= odd, s[n][2] *= even, s[n][3] *= odd;
    }
  }
}

// acc += P V for 32 keys from `key` on and groups of 16 columns from `first_group` on. The values of the next group are
// on their way while those of one are multiplied.
template <class T, PoolKind Kind, int D, int Groups>
__device__ __forceinline__ void add_values(float (&acc)[2 * Groups][4], const uint32_t (&a)[2][4],
                                           const PagedStage<T, Kind, D>& stage, int key, int first_group,
                                           int lane) {
  using Tile = PoolTile<T, Kind, D>;
  uint32_t b[2][2][2][2];  // of a group and the next one, in turn
  Tile::load_values(b[0], stage.values, key, first_group, lane);
#pragma unroll
  for (int g = 0; g < Groups; g++) {
    if (g + 1 < Groups) Tile::load_values(b[(g + 1) % 2], stage.values, key, first_group + g + 1, lane);
#pragma unroll
    for (int step = 0; step < 2; step++)
#pragma unroll
      for (int block = 0; block < 2; block++)
        ptx::mma_m16n8k16<T>(acc[2 * g + block], a[step], b[g % 2][step][block]);
    fence_fragments<D>();
  }
}
template <int N>
__device__ __forceinline__ void rescale(float (&acc)[N][4], const float (&alpha)[2]) {
#pragma unroll
  for (int n = 0; n < N; n++) acc[n][0] *= alpha[0], acc[n][1] *= alpha[0], acc[n][2] *= alpha[1], acc[n][3] *= alpha[1];
}

template <class T, PoolKind Kind, int D>
__device__ __forceinline__ void attend_wide(const PagedAttentionParams& p, PagedPipe<T, Kind, D>& pipe,
                                            const AttentionItem& item, int kv_head,
                                            const PagedScratch<T, D>& scratch) {
  constexpr int kKeys = kTileKeys<D>, kBlocks = kKeys / 8, kQuarter = kBlocks / 4;
  const PagedRows rows(p, item, kv_head, ptx::fresh_thread() / 32 * 16, scratch.places);
  QueryFragments<T, Kind, D, (D <= 128)> query;
  query.load({rows.query<T>(p, 0), rows.query<T>(p, 1)}, p.key_dim, scratch.query);
  const float scale = p.mask.scale * key_factor(p, kv_head);
  float acc[D / 8][4] = {}, maximum[2] = {-INFINITY, -INFINITY}, sum[4][2] = {};

  for (int key = item.key_begin / kKeys * kKeys; key < item.key_end; key += kKeys) {
    const auto stage = pipe.next();
    if (key >= rows.any_sees.end || key + kKeys <= rows.any_sees.begin) continue;  // the same for the whole warp
    const int lane = ptx::fresh_thread() % 32;  // addresses are made anew: registers are dearer
    float s[kBlocks][4], alpha[2];
    score_keys<T, Kind, D>(s, query, stage, 0, p.token_scales, lane);
    const ScoreMap map(p.mask, ptx::opaque(scale), false);
    rows.mask_scores(s, p, map, key, lane);
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const float base = advance_maximum(maximum[h], row_maximum(s, h) * map.factor, alpha[h]);
      sum[0][h] = fmaf(sum[0][h], alpha[h], exponentiate<0, kQuarter>(s, h, map.factor, base));
      sum[1][h] = fmaf(sum[1][h], alpha[h], exponentiate<kQuarter, kQuarter>(s, h, map.factor, base));
      sum[2][h] = fmaf(sum[2][h], alpha[h], exponentiate<2 * kQuarter, kQuarter>(s, h, map.factor, base));
      sum[3][h] = fmaf(sum[3][h], alpha[h], exponentiate<3 * kQuarter, kQuarter>(s, h, map.factor, base));
    }
    scale_probabilities(s, stage, 0, p.token_scales, lane);
    rescale(acc, alpha);
#pragma unroll
    for (int n = 0; n < kBlocks; n += 4) {
      const uint32_t a[2][4] = {{pack<T>(s[n][0], s[n][1]), pack<T>(s[n][2], s[n][3]),
                                 pack<T>(s[n + 1][0], s[n + 1][1]), pack<T>(s[n + 1][2], s[n + 1][3])},
                                {pack<T>(s[n + 2][0], s[n + 2][1]), pack<T>(s[n + 2][2], s[n + 2][3]),
                                 pack<T>(s[n + 3][0], s[n + 3][1]), pack<T>(s[n + 3][2], s[n + 3][3])}};
      add_values<T, Kind, D, D / 16>(acc, a, stage, 8 * n, 0, lane);
    }
  }

  const float factor = value_factor(p, kv_head);
#pragma unroll
  for (int h = 0; h < 2; h++) {
    float total = quad_sum(sum[0][h]);
#pragma unroll
    for (int quarter = 1; quarter < 4; quarter++) total += quad_sum(sum[quarter][h]);
    rows.store<T, Kind, D, D / 16>(p, h, acc, 0, maximum[h], total, factor, true);
  }
}

template <class T, PoolKind Kind, int D>
__device__ __forceinline__ void attend_narrow(const PagedAttentionParams& p, PagedPipe<T, Kind, D>& pipe,
                                              const AttentionItem& item, int kv_head,
                                              const PagedScratch<T, D>& scratch) {
  constexpr int kKeys = kTileKeys<D>, kBlocks = kKeys / 32, kGroups = D / 64;
  const PagedRows rows(p, item, kv_head, 0, scratch.places);
  QueryFragments<T, Kind, D, true> query;
  query.load({rows.query<T>(p, 0), rows.query<T>(p, 1)}, p.key_dim, nullptr);
  const float scale = p.mask.scale * key_factor(p, kv_head);
  float acc[D / 32][4] = {}, maximum[2] = {-INFINITY, -INFINITY}, sum[2] = {};

  for (int key = item.key_begin / kKeys * kKeys; key < item.key_end; key += kKeys) {
    const auto stage = pipe.next();
    const int thread = ptx::fresh_thread(), lane = thread % 32, warp = thread / 32;
    const int my_keys = warp * (kKeys / 4);
    float s[kBlocks][4], alpha[2];
    score_keys<T, Kind, D>(s, query, stage, my_keys, p.token_scales, lane);
    const ScoreMap map(p.mask, ptx::opaque(scale), false);
    rows.mask_scores(s, p, map, key + my_keys, lane);
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const float mine = row_maximum(s, h);
      if (lane % 4 == 0) scratch.maxima[warp * 16 + lane / 4 + 8 * h] = mine;
    }
    __syncthreads();  // maxima of all quarters are there
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float most = -INFINITY;
#pragma unroll
      for (int w = 0; w < kPagedWarps; w++) most = fmaxf(most, scratch.maxima[w * 16 + lane / 4 + 8 * h]);
      const float base = advance_maximum(maximum[h], most * map.factor, alpha[h]);
      sum[h] = fmaf(sum[h], alpha[h], exponentiate<0, kBlocks>(s, h, map.factor, base));
    }
    scale_probabilities(s, stage, my_keys, p.token_scales, lane);
    using Layout = TileLayout<T, kKeys>;
#pragma unroll
    for (int n = 0; n < kBlocks; n++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        T* to = scratch.probabilities + Layout::at(lane / 4 + 8 * h, my_keys / 8 + n) + lane % 4 * 2;
        *reinterpret_cast<uint32_t*>(to) = pack<T>(s[n][2 * h], s[n][2 * h + 1]);
      }
    __syncthreads();  // and so are the probabilities
    rescale(acc, alpha);
#pragma unroll
    for (int n = 0; n < kKeys; n += 32) {
      uint32_t a[2][4];
      load_a<T, kKeys>(a[0], scratch.probabilities, 0, n / 8, lane);
      load_a<T, kKeys>(a[1], scratch.probabilities, 0, n / 8 + 2, lane);
      add_values<T, Kind, D, kGroups>(acc, a, stage, n, warp * kGroups, lane);
    }
  }

  const int thread = ptx::fresh_thread(), warp = thread / 32, lane = thread % 32;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const float mine = quad_sum(sum[h]);
    if (lane % 4 == 0) scratch.sums[warp * 16 + lane / 4 + 8 * h] = mine;
  }
  __syncthreads();
  const float factor = value_factor(p, kv_head);
#pragma unroll
  for (int h = 0; h < 2; h++) {
    float total = scratch.sums[lane / 4 + 8 * h];
#pragma unroll
    for (int w = 1; w < kPagedWarps; w++) total += scratch.sums[w * 16 + lane / 4 + 8 * h];
    rows.store<T, Kind, D, kGroups>(p, h, acc, warp * kGroups, maximum[h], total, factor, warp == 0);
  }
}

// Rows behind the last sequence: zero, log_sum_exp -inf.
template <class T>
__device__ __forceinline__ void clear_padding(const PagedAttentionParams& p) {
  const int64_t heads = p.limits.heads, first = p.cu_seqlens[p.limits.batch] * heads, last = p.limits.tokens * heads;
  const int64_t me = int64_t(blockIdx.x) * kPagedThreads + threadIdx.x, all = int64_t(gridDim.x) * kPagedThreads;
  uint4* output = static_cast<uint4*>(p.output);
  for (int64_t i = first * p.value_dim / 8 + me; i < last * p.value_dim / 8; i += all) output[i] = uint4{0, 0, 0, 0};
  if (p.log_sum_exp != nullptr)
    for (int64_t i = first + me; i < last; i += all) p.log_sum_exp[i] = -INFINITY;
}

// One block a worker.
template <class T, PoolKind Kind, int D>
__global__ void __launch_bounds__(kPagedThreads, D <= 128 ? 2 : 1)
    paged_attention_kernel(PagedAttentionParams p) {
  DYNAMIC_SMEM(smem);
  const int* header = p.plan.header;
  ptx::device_check(header[kPlanSignature] == kAttentionPlanSignature && header[kPlanBatch] == p.limits.batch &&
                        header[kPlanTokens] == p.limits.tokens && header[kPlanHeads] == p.limits.heads &&
                        header[kPlanKvHeads] == p.limits.kv_heads && header[kPlanWorkers] == int(gridDim.x),
                    "paged_attention: attention_metadata is the plan of another call");
  clear_padding<T>(p);
  const PagedScratch<T, D> scratch(smem);
  PagedPipe<T, Kind, D> pipe(p, smem + PagedScratch<T, D>::kBytes);
  for (UnitCursor cursor(p); !cursor.done(); cursor.advance(p)) {
    const AttentionItem item = cursor.item(p);
    if (item.rows <= 16) attend_narrow<T, Kind, D>(p, pipe, item, cursor.kv_head(p), scratch);
    else attend_wide<T, Kind, D>(p, pipe, item, cursor.kv_head(p), scratch);
  }
  pipe.drain();
}

}  // namespace slipway
