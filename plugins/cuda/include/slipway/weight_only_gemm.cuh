// y = x W + bias for few rows (1 to 64) and a W of 4 or 8 bits, which decides the time: all of W is read for little
// arithmetic. The idea of a layout made for the fragments of tensor cores, and of deep pipelines of copies, is Marlin's
// (Frantar et al. 2024, arXiv 2408.11743); the layout is our own: plugins/weight_layout.py says it bit by bit.
//
// W is the tensor core's first operand (16 of n by 16 of k), x its second (8 rows). A lane's 16 bytes are its fragments
// for 16 columns and a slab of k (64 codes of int4, 32 of 8 bits), so that weights go from memory to registers without
// a shuffle; four such loads are a warp's 64 columns. Groups' scales multiply the float32 sums over each slab, not the
// weights: fewer operations up to 16 rows, and no rounding.
//
// A block has 8 warps: 2 side by side along n, 4 along k. A sum is added up in an order that follows from n, k and the
// format alone (the warp's slabs, the warps, the splits of k), so a row's result does not depend on other rows.
#pragma once
#include "slipway/dequantize.cuh"
#include "slipway/tile.cuh"

namespace slipway {

constexpr int kGemmColumnWarps = 2, kGemmSlabWarps = 4;
constexpr int kGemmWarps = kGemmColumnWarps * kGemmSlabWarps, kGemmThreads = 32 * kGemmWarps;
constexpr int kGemmWarpColumns = 64;                                   // a column block of the layout
constexpr int kGemmColumns = kGemmColumnWarps * kGemmWarpColumns;      // of a block
constexpr int kGemmUnitBytes = 2048;                                   // 64 columns of a slab
constexpr int kGemmSumStride = kGemmColumns + 4;  // floats; rows of sums that a warp writes at once lie in other banks

struct WeightOnlyGemmParams {
  const void* x = nullptr;  // [rows, k] T
  const uint8_t* weight = nullptr;  // [column_blocks, slabs, kGemmUnitBytes]
  // Grouped: [column_blocks, groups, 64], of each 64 the order of plugins/weight_layout.py. Else null.
  const void* scale = nullptr;    // T
  const uint8_t* zero = nullptr;  // of int4, 0 to 15; null: 8 everywhere
  const float* channel_scale = nullptr;  // [n], when there are no groups
  const void* bias = nullptr;            // [n] T, optional
  void* y = nullptr;                     // [rows, n] T
  float* partial = nullptr;              // [splits, rows, padded_n], when splits > 1
  int rows = 0, k = 0, n = 0;            // k a multiple of 8
  int column_blocks = 0, slabs = 0;      // n / 64 and k / slab, rounded up
  int groups = 0, slabs_in_group = 1;    // slabs_in_group 1 also where a slab has two groups
  int splits = 1, stages_in_split = 0;   // of k; a stage is kGemmSlabWarps slabs
  __host__ __device__ int padded_n() const { return column_blocks * kGemmWarpColumns; }
};

enum class WeightFormat { kInt4, kInt8, kE4M3 };
enum class WeightScales { kGroups32, kGroups, kChannels };  // kGroups: of a multiple of a slab

// A zero point of int4 as the expansion takes it off: as int4_zero, and for half as -(64 + zero) too.
template <class T>
struct Int4Zero {
  uint32_t plain, sixteenth;

  __device__ __forceinline__ explicit Int4Zero(uint32_t zero = 8)
      : plain(int4_zero<T>(zero, zero)),
        sixteenth(ptx::IsHalf<T>::value ? ptx::subtract2<T>(0x63806380u, plain) : 0) {}  // 960 - (1024 + zero)
};
// expand_int4; halves take half the nibbles from where they are, 16 times too large, which saves most shifts.
template <class T>
__device__ __forceinline__ void expand_codes(uint32_t eight, const Int4Zero<T>& zero, uint32_t (&out)[4]) {
  if constexpr (ptx::IsHalf<T>::value) {
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      const uint32_t nibbles = i == 0 ? eight : eight >> 8;
      out[i] = ptx::subtract2<T>(ptx::lop3<ptx::kAndOr>(nibbles, 0x000f000fu, kMagic<T>), zero.plain);
      out[i + 1] = ptx::fma2<T>(ptx::lop3<ptx::kAndOr>(nibbles, 0x00f000f0u, kMagic<T>), 0x2c002c00u,
                                zero.sixteenth);
    }
  } else {
    expand_int4<T>(eight, zero.plain, out);
  }
}

// A lane's 16 bytes have two parts; words 2 * part and 2 * part + 1 are of columns g and g + 8 (g = lane / 4).
template <class T, WeightFormat kFormat>
struct WeightCodes {
  static constexpr int kParts = 2;
  static constexpr int kPartSteps = kFormat == WeightFormat::kInt4 ? 2 : 1;  // of 16 k
  static constexpr int kSteps = kParts * kPartSteps, kSlab = 16 * kSteps;

  // The fragments of a part. low, high: its words of columns g and g + 8; zero: of either.
  static __device__ __forceinline__ void expand(uint32_t low, uint32_t high, const Int4Zero<T> (&zero)[2],
                                                uint32_t (&a)[kPartSteps][4]) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const uint32_t word = half == 0 ? low : high;
      if constexpr (kFormat == WeightFormat::kInt4) {
        uint32_t out[4];
        expand_codes<T>(word, zero[half], out);
        a[0][half] = out[0], a[0][half + 2] = out[1], a[1][half] = out[2], a[1][half + 2] = out[3];
      } else {
        uint32_t out[2];
        if constexpr (kFormat == WeightFormat::kInt8) expand_int8<T>(word, out);
        else expand_e4m3<T>(word, out);
        a[0][half] = out[0], a[0][half + 2] = out[1];
      }
    }
  }
};

// What one compiled form does: kRows (8, 16 or 32) rows of x at a time.
template <class T_, WeightFormat kFormat_, WeightScales kScales_, int kRows_>
struct GemmForm {
  using T = T_;
  static constexpr WeightFormat kFormat = kFormat_;
  static constexpr WeightScales kScales = kScales_;
  static constexpr int kRows = kRows_, kRowTiles = kRows / 8;
  using Codes = WeightCodes<T, kFormat>;
  static constexpr bool kGrouped = kScales != WeightScales::kChannels;
  static constexpr bool kZeros = kFormat == WeightFormat::kInt4;
  static constexpr int kGroupsInSlab = kScales == WeightScales::kGroups32 && Codes::kSlab == 64 ? 2 : 1;
  static constexpr int kStageK = kGemmSlabWarps * Codes::kSlab;
  using Tile = TileLayout<T, kStageK>;  // of x
  static constexpr int kStages = kRows == 8 ? 4 : 3;

  // One stage in shared memory; everything but x is a warp's own.
  static constexpr int kXBytes = kRows * kStageK * 2;
  static constexpr int kWeightBytes = kGemmWarps * kGemmUnitBytes;
  static constexpr int kWarpScaleBytes = kGrouped ? kGroupsInSlab * 128 : 0;
  static constexpr int kWarpZeroBytes = kGrouped && kZeros ? kGroupsInSlab * 64 : 0;
  static constexpr int kStageBytes = kWeightBytes + kXBytes + kGemmWarps * (kWarpScaleBytes + kWarpZeroBytes);
  static constexpr int kSharedBytes = kStages * kStageBytes;
  static_assert(kGemmSlabWarps * kRows * kGemmSumStride * 4 <= kSharedBytes, "the sums reuse the stages' memory");
};

template <class Form>
struct GemmBlock {
  using T = typename Form::T;
  using Codes = typename Form::Codes;
  using Tile = typename Form::Tile;

  const WeightOnlyGemmParams& p;
  unsigned char* shared;
  int lane, warp, slab_warp;
  int first_row, column_block;  // the block's first row, this warp's 64 columns
  bool has_columns;

  __device__ __forceinline__ GemmBlock(const WeightOnlyGemmParams& params, unsigned char* memory)
      : p(params), shared(memory), lane(int(threadIdx.x) % 32), warp(int(threadIdx.x) / 32),
        slab_warp(warp / kGemmColumnWarps), first_row(int(blockIdx.x) * Form::kRows),
        column_block(int(blockIdx.y) * kGemmColumnWarps + warp % kGemmColumnWarps),
        has_columns(column_block < params.column_blocks) {}

  __device__ __forceinline__ unsigned char* stage_memory(int stage) const {
    return shared + stage % Form::kStages * Form::kStageBytes;
  }
  __device__ __forceinline__ T* x_tile(int stage) const {
    return reinterpret_cast<T*>(stage_memory(stage) + Form::kWeightBytes);
  }
  __device__ __forceinline__ unsigned char* weights(int stage) const {
    return stage_memory(stage) + warp * kGemmUnitBytes;
  }
  __device__ __forceinline__ unsigned char* scales(int stage) const {
    return stage_memory(stage) + Form::kWeightBytes + Form::kXBytes + warp * Form::kWarpScaleBytes;
  }
  __device__ __forceinline__ unsigned char* zeros(int stage) const {
    return stage_memory(stage) + Form::kWeightBytes + Form::kXBytes + kGemmWarps * Form::kWarpScaleBytes +
           warp * Form::kWarpZeroBytes;
  }
  __device__ __forceinline__ int slab_of(int stage) const { return stage * kGemmSlabWarps + slab_warp; }
  __device__ __forceinline__ bool has_slab(int stage) const { return has_columns && slab_of(stage) < p.slabs; }

  // Asks for a stage: x by the whole block, the rest by each warp for itself.
  __device__ __forceinline__ void load(int stage) const {
    const T* x = static_cast<const T*>(p.x);
    const int first_k = stage * Form::kStageK;
    constexpr int chunks = Form::kRows * Tile::kChunks;
#pragma unroll
    for (int i = 0; i < (chunks + kGemmThreads - 1) / kGemmThreads; i++) {
      const int number = i * kGemmThreads + int(threadIdx.x);
      if (chunks % kGemmThreads != 0 && number >= chunks) break;
      const int row = number / Tile::kChunks, chunk = number % Tile::kChunks, k = first_k + 8 * chunk;
      const bool valid = first_row + row < p.rows && k < p.k;
      const int64_t at = valid ? int64_t(first_row + row) * p.k + k : 0;
      ptx::cp_async_16(x_tile(stage) + Tile::at(row, chunk), x + at, valid);
    }
    if (!has_slab(stage)) return;
    const int64_t unit = int64_t(column_block) * p.slabs + slab_of(stage);
#pragma unroll
    for (int j = 0; j < 4; j++)
      ptx::cp_async_16(weights(stage) + j * 512 + lane * 16, p.weight + unit * kGemmUnitBytes + j * 512 + lane * 16);
    if constexpr (Form::kGrouped) {
      const int lane_group = lane / 8;  // eight lanes copy a group's 64 scales and zero points
      const int group = slab_of(stage) / p.slabs_in_group * Form::kGroupsInSlab + lane_group;
      if (lane_group < Form::kGroupsInSlab) {
        const bool valid = group < p.groups;  // a slab's second group may lie beyond k: scale 0
        const int64_t at = valid ? (int64_t(column_block) * p.groups + group) * 64 + lane % 8 * 8 : 0;
        ptx::cp_async_16(scales(stage) + lane * 16, static_cast<const T*>(p.scale) + at, valid);
        if (Form::kZeros && p.zero) ptx::cp_async_small<8>(zeros(stage) + lane * 8, p.zero + at, valid);
      }
    }
  }

  // sum[j][r] of 16 columns by 8 rows += the products of this warp's slab. The two groups of a slab go one after the
  // other, with half of x in registers each.
  __device__ __forceinline__ void multiply(int stage, float (&sum)[4][Form::kRowTiles][4]) const {
    constexpr int parts = Codes::kParts / Form::kGroupsInSlab, steps = Codes::kSteps / Form::kGroupsInSlab;
    const int g = lane / 4;
#pragma unroll
    for (int group = 0; group < Form::kGroupsInSlab; group++) {
      uint32_t b[steps][Form::kRowTiles][2];
#pragma unroll
      for (int r = 0; r < Form::kRowTiles; r++)
#pragma unroll
        for (int s = 0; s < steps; s += 2) {
          uint32_t f[4];  // 8 rows by 4 chunks: two steps
          const int chunk = (slab_warp * Codes::kSteps + group * steps + s) * 2 + lane / 8;
          ptx::ldmatrix_x4<false>(f, x_tile(stage) + Tile::at(r * 8 + lane % 8, chunk));
          b[s][r][0] = f[0], b[s][r][1] = f[1], b[s + 1][r][0] = f[2], b[s + 1][r][1] = f[3];
        }
#pragma unroll
      for (int j = 0; j < 4; j++) {
        using Words = Vector<uint32_t, 2 * parts>;
        const Words words =
            Words::load(reinterpret_cast<const uint32_t*>(weights(stage) + j * 512 + lane * 16) + group * 2 * parts);
        Int4Zero<T> zero[2];
        if (Form::kZeros && p.zero) {
          const uint32_t pair = *reinterpret_cast<const uint16_t*>(zeros(stage) + group * 64 + g * 8 + j * 2);
          zero[0] = Int4Zero<T>(pair & 0xff), zero[1] = Int4Zero<T>(pair >> 8);
        }
        float product[Form::kRowTiles][4] = {};
#pragma unroll
        for (int part = 0; part < parts; part++) {
          uint32_t a[Codes::kPartSteps][4];
          Codes::expand(words[2 * part], words[2 * part + 1], zero, a);
#pragma unroll
          for (int s = 0; s < Codes::kPartSteps; s++)
#pragma unroll
            for (int r = 0; r < Form::kRowTiles; r++)
              ptx::mma_m16n8k16<T>(Form::kGrouped ? product[r] : sum[j][r], a[s], b[part * Codes::kPartSteps + s][r]);
        }
        if constexpr (Form::kGrouped) {
          const uint32_t pair = *reinterpret_cast<const uint32_t*>(scales(stage) + group * 128 + g * 16 + j * 4);
          const float2 scale = unpack<T>(pair);  // of columns g and g + 8
#pragma unroll
          for (int r = 0; r < Form::kRowTiles; r++) {
            sum[j][r][0] += scale.x * product[r][0], sum[j][r][1] += scale.x * product[r][1];
            sum[j][r][2] += scale.y * product[r][2], sum[j][r][3] += scale.y * product[r][3];
          }
        }
      }
    }
  }

  // Adds up the warps' sums and writes the result, or this split's part of it.
  __device__ __forceinline__ void write(const float (&sum)[4][Form::kRowTiles][4], int split) const {
    float* const sums = reinterpret_cast<float*>(shared);  // [kGemmSlabWarps][kRows][kGemmSumStride]
    const int g = lane / 4, t = lane % 4, first = warp % kGemmColumnWarps * kGemmWarpColumns;
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
      for (int r = 0; r < Form::kRowTiles; r++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int row = r * 8 + t * 2 + i % 2, column = first + j * 16 + i / 2 * 8 + g;
          sums[(slab_warp * Form::kRows + row) * kGemmSumStride + column] = sum[j][r][i];
        }
    __syncthreads();
    const int rows = p.rows - first_row < Form::kRows ? p.rows - first_row : Form::kRows;
    const int column = int(threadIdx.x) % kGemmColumns, n = int(blockIdx.y) * kGemmColumns + column;
    if (n >= p.n) return;
    const float channel_scale = p.channel_scale ? p.channel_scale[n] : 1.f;
    const float bias = p.bias ? to_float(static_cast<const T*>(p.bias)[n]) : 0.f;
    for (int row = int(threadIdx.x) / kGemmColumns; row < rows; row += kGemmThreads / kGemmColumns) {
      float total = 0.f;
#pragma unroll
      for (int w = 0; w < kGemmSlabWarps; w++) total += sums[(w * Form::kRows + row) * kGemmSumStride + column];
      if (p.splits > 1)
        p.partial[(int64_t(split) * p.rows + first_row + row) * p.padded_n() + n] = total;
      else
        static_cast<T*>(p.y)[int64_t(first_row + row) * p.n + n] = from_float<T>(total * channel_scale + bias);
    }
  }
};

// Grid: (row tiles, pairs of column blocks, splits). Row tiles come first: they share weights in L2.
template <class Form>
__global__ void __launch_bounds__(kGemmThreads) weight_only_gemm_kernel(const WeightOnlyGemmParams p) {
  DYNAMIC_SMEM(shared);
  const GemmBlock<Form> block(p, shared);
  const int split = int(blockIdx.z), stages = (p.slabs + kGemmSlabWarps - 1) / kGemmSlabWarps;
  const int begin = split * p.stages_in_split;
  const int end = begin + p.stages_in_split < stages ? begin + p.stages_in_split : stages;
  float sum[4][Form::kRowTiles][4] = {};
#pragma unroll
  for (int i = 0; i < Form::kStages - 1; i++) {
    if (begin + i < end) block.load(begin + i);
    ptx::cp_async_commit();
  }
  for (int stage = begin; stage < end; stage++) {
    ptx::cp_async_wait<Form::kStages - 2>();
    __syncthreads();  // the stage is there for all, and all are done with the one before, whose place is next
    if (stage + Form::kStages - 1 < end) block.load(stage + Form::kStages - 1);
    ptx::cp_async_commit();
    if (block.has_slab(stage)) block.multiply(stage, sum);
  }
  ptx::cp_async_wait<0>();
  __syncthreads();
  if (p.splits > 1) ptx::next_kernel_start();
  block.write(sum, split);
}

// y = the splits' parts, added in their order, times the channels' scales, plus bias.
template <class T>
__global__ void __launch_bounds__(256) weight_only_merge_kernel(const WeightOnlyGemmParams p) {
  const int64_t count = int64_t(p.rows) * p.n, part = int64_t(p.rows) * p.padded_n();
  ptx::previous_kernel_wait();
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += int64_t(gridDim.x) * blockDim.x) {
    const int64_t row = i / p.n, n = i % p.n;
    float total = 0.f;
    for (int split = 0; split < p.splits; split++) total += p.partial[split * part + row * p.padded_n() + n];
    const float channel_scale = p.channel_scale ? p.channel_scale[n] : 1.f;
    const float bias = p.bias ? to_float(static_cast<const T*>(p.bias)[n]) : 0.f;
    static_cast<T*>(p.y)[i] = from_float<T>(total * channel_scale + bias);
  }
}

}  // namespace slipway
