// Copies listed blocks of all pools in one launch: copy on write, swap out, swap in.
#pragma once
#include <cstdint>

#include "slipway/numeric.cuh"
#include "slipway/ptx.cuh"

namespace slipway {

// Source and destination may be the same pools, or one of them pinned host memory that the device can reach:
// copies are loads and stores of 16 bytes by the device, so that the list of pairs can live on it (and in a
// CUDA graph).
struct BlockCopyParams {
  const unsigned char* source = nullptr;  // [num_pools, source_blocks, block_bytes]
  unsigned char* destination = nullptr;   // [num_pools, destination_blocks, block_bytes]
  int64_t source_pool_stride = 0, source_block_stride = 0;  // in bytes, multiples of 16
  int64_t destination_pool_stride = 0, destination_block_stride = 0;
  int64_t block_bytes = 0;  // a multiple of 16
  int source_blocks = 0, destination_blocks = 0, num_pools = 0;
  bool same_pools = false;  // source is destination

  const int32_t* pairs = nullptr;  // [num_pairs, 2] source and destination block; skipped if one is negative
  int num_pairs = 0;
  int32_t* accepted = nullptr;  // workspace [num_pairs]: the destination, or -1
  int32_t* refused = nullptr;   // [1], counts up
};

constexpr int kBlockCopyThreads = 128;
constexpr int kBlockCopyVectors = 8;  // loads of 16 bytes that a thread has in flight
constexpr int64_t kBlockCopyChunk = int64_t(kBlockCopyThreads) * kBlockCopyVectors * 16;

// Pairs that ask for nothing: they are no fault, and disturb no other pair.
__device__ __forceinline__ bool asks_nothing(const BlockCopyParams& p, int source, int destination) {
  return source < 0 || destination < 0 || (p.same_pools && source == destination);
}

// Decides which pairs are carried out, one warp a pair. A pair is refused when a block is out of range, when
// another pair writes the same destination, or (within the same pools) when another pair reads its
// destination: copies run in no order, so that pair would change what the other one reads.
__global__ void __launch_bounds__(kBlockCopyThreads) block_copy_accept_kernel(BlockCopyParams p) {
  const int pair = (int(blockIdx.x) * kBlockCopyThreads + int(threadIdx.x)) / 32;
  const int lane = int(threadIdx.x) % 32;
  if (pair >= p.num_pairs) return;
  const int source = p.pairs[2 * pair], destination = p.pairs[2 * pair + 1];
  const bool skipped = asks_nothing(p, source, destination);
  bool wrong = source >= p.source_blocks || destination >= p.destination_blocks;
  for (int i = lane; i < p.num_pairs; i += 32) {
    const int other_source = p.pairs[2 * i], other_destination = p.pairs[2 * i + 1];
    if (i == pair || asks_nothing(p, other_source, other_destination)) continue;
    wrong |= other_destination == destination || (p.same_pools && other_source == destination);
  }
  const bool refused = __any_sync(0xffffffffu, wrong) && !skipped;
  if (lane != 0) return;
  p.accepted[pair] = skipped || refused ? -1 : destination;
  if (refused) atomicAdd(p.refused, 1);
}

// Work item: a chunk of a block of a pool. The grid is any number of blocks.
__global__ void __launch_bounds__(kBlockCopyThreads) block_copy_kernel(BlockCopyParams p) {
  const unsigned chunks = unsigned((p.block_bytes + kBlockCopyChunk - 1) / kBlockCopyChunk);
  const unsigned items = chunks * unsigned(p.num_pools) * unsigned(p.num_pairs);  // less than 2^31
  for (unsigned item = blockIdx.x; item < items; item += gridDim.x) {
    const unsigned block = item / chunks, pool = block / unsigned(p.num_pairs);
    const unsigned pair = block % unsigned(p.num_pairs);
    const int destination = p.accepted[pair];
    if (destination < 0) continue;
    const int64_t begin = int64_t(item % chunks) * kBlockCopyChunk + int64_t(threadIdx.x) * 16;
    const unsigned char* from =
        p.source + pool * p.source_pool_stride + p.pairs[2 * pair] * p.source_block_stride + begin;
    unsigned char* to =
        p.destination + pool * p.destination_pool_stride + destination * p.destination_block_stride + begin;
    uint4 held[kBlockCopyVectors] = {};
#pragma unroll
    for (int i = 0; i < kBlockCopyVectors; i++) {
      const int64_t at = int64_t(i) * kBlockCopyThreads * 16;
      if (begin + at < p.block_bytes) held[i] = *reinterpret_cast<const uint4*>(from + at);
    }
#pragma unroll
    for (int i = 0; i < kBlockCopyVectors; i++) {
      const int64_t at = int64_t(i) * kBlockCopyThreads * 16;
      if (begin + at < p.block_bytes) *reinterpret_cast<uint4*>(to + at) = held[i];
    }
  }
}

}  // namespace slipway
