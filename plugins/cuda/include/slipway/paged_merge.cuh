// Brings the partial results of a token's chunks together, always in the same order.
#pragma once
#include "slipway/paged_loader.cuh"
#include "slipway/paged_rows.cuh"

namespace slipway {

// Shared memory: [kPagedWarps][value_dim] floats. A block takes one token and head at a time; its warps take every
// fourth chunk, and their sums are added in order.
template <class T>
__global__ void __launch_bounds__(kPagedThreads) paged_merge_kernel(PagedAttentionParams p) {
  DYNAMIC_SMEM(smem);
  float* parts = reinterpret_cast<float*>(smem);
  const int heads = p.limits.heads, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int work = p.plan.header[kPlanMerged] * heads;
  for (int unit = blockIdx.x; unit < work; unit += gridDim.x) {
    const int token = p.plan.merged[unit / heads], head = unit % heads;
    const int sequence = p.plan.token_sequence[token];
    const AttentionSequence& s = p.plan.sequences[sequence];
    const int chunks = s.chunks;
    // Rows of the partial arrays; those of neighbouring chunks are `heads` apart.
    const int64_t first = (int64_t(s.slot) + int64_t(token - p.cu_seqlens[sequence]) * chunks) * heads + head;
    const float* state = p.partial_state + 2 * first;

    float maximum = -INFINITY, sum = 0.f;
    for (int c = lane; c < chunks; c += 32) maximum = fmaxf(maximum, state[2 * int64_t(c) * heads]);
#pragma unroll
    for (int step = 1; step < 32; step *= 2) maximum = fmaxf(maximum, __shfl_xor_sync(0xffffffffu, maximum, step));
    const float base = maximum == -INFINITY ? 0.f : maximum;
    for (int c = lane; c < chunks; c += 32) {
      const float* one = state + 2 * int64_t(c) * heads;
      sum = fmaf(one[1], ptx::exp2(one[0] - base), sum);
    }
#pragma unroll
    for (int step = 1; step < 32; step *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);

    for (int column = 4 * lane; column < p.value_dim; column += 128) {
      float4 acc = {0.f, 0.f, 0.f, 0.f};
#pragma unroll 4
      for (int c = warp; c < chunks; c += kPagedWarps) {
        const int64_t row = first + int64_t(c) * heads;
        const float weight = ptx::exp2(p.partial_state[2 * row] - base);
        const float4 x = *reinterpret_cast<const float4*>(p.partial_output + row * p.value_dim + column);
        acc.x = fmaf(x.x, weight, acc.x), acc.y = fmaf(x.y, weight, acc.y);
        acc.z = fmaf(x.z, weight, acc.z), acc.w = fmaf(x.w, weight, acc.w);
      }
      *reinterpret_cast<float4*>(parts + warp * p.value_dim + column) = acc;
    }
    __syncthreads();
    const RowEnd end = finish_row(maximum, sum, head_sink<T>(p, head));
    const float factor = value_factor(p, head / (heads / p.limits.kv_heads));
    const int64_t row = int64_t(token) * heads + head;
    for (int column = 2 * int(threadIdx.x); column < p.value_dim; column += 2 * kPagedThreads) {
      float x = parts[column], y = parts[column + 1];
#pragma unroll
      for (int w = 1; w < kPagedWarps; w++)
        x += parts[w * p.value_dim + column], y += parts[w * p.value_dim + column + 1];
      *reinterpret_cast<uint32_t*>(static_cast<T*>(p.output) + row * p.value_dim + column) =
          pack<T>(x * end.inverse * factor, y * end.inverse * factor);
    }
    if (p.log_sum_exp != nullptr && threadIdx.x == 0) p.log_sum_exp[row] = end.log_sum_exp;
    __syncthreads();  // `parts` may be overwritten
  }
}

}  // namespace slipway
