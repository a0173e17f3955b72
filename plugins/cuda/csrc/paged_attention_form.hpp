// What each unit of paged attention compiles.
#pragma once
#include <algorithm>

#include "device.hpp"
#include "dispatch.hpp"
#include "paged_attention.hpp"
#include "slipway/paged_attention.cuh"
#include "slipway/paged_merge.cuh"

namespace slipway {

// As many stages as let two blocks share a multiprocessor (which reserves a kilobyte for each block), else one.
template <class T, PoolKind Kind, int D>
int paged_stages() {
  constexpr int kReserved = 1 << 10;
  const int whole = device().max_shared_bytes, half = (whole + kReserved) / 2 - kReserved;
  for (const int limit : {half, whole})
    for (int stages = kMaxStages; stages >= 2; stages--)
      if (int64_t(paged_smem<T, Kind, D>(stages)) <= limit) return stages;
  unsupported("paged_attention with heads of %d needs %lld bytes of shared memory; this device has %d", D,
              (long long)paged_smem<T, Kind, D>(2), whole);
}

template <class T, PoolKind Kind>
void launch_paged_attention(PagedAttentionParams p, void* stream) {
  dispatch_head_size(std::max(p.key_dim, p.value_dim), [&](auto size) {
    constexpr int D = decltype(size)::value;
    p.stages = paged_stages<T, Kind, D>();
    ptx::launch(paged_attention_kernel<T, Kind, D>, dim3(unsigned(p.limits.workers)), dim3(kPagedThreads),
                paged_smem<T, Kind, D>(p.stages), stream, p);
  });
  const AttentionPlanLayout layout(p.limits);
  if (layout.slots == 0) return;
  const int64_t units = layout.split_tokens * p.limits.heads;
  const int blocks = int(std::min<int64_t>(units, 8 * int64_t(p.limits.workers)));
  ptx::launch(paged_merge_kernel<T>, dim3(unsigned(blocks)), dim3(kPagedThreads),
              sizeof(float) * kPagedWarps * size_t(p.value_dim), stream, p);
}

}  // namespace slipway
