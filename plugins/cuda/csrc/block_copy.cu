#include <algorithm>
#include <cstdint>

#include "device.hpp"
#include "operator.hpp"
#include "slipway/block_copy.cuh"

namespace slipway {
namespace {

int64_t workspace(const Arguments& a) {
  WorkspaceParts parts(nullptr);
  parts.take<int32_t>(a.dim("pairs"));
  return parts.bytes();
}

void run(const Arguments& a, void* workspace, void* stream) {
  BlockCopyParams p;
  const bool apart = a.has("source");
  const char* source = apart ? "source" : "destination";
  p.source = a.data<const unsigned char>(source), p.destination = a.data<unsigned char>("destination");
  p.source_pool_stride = a.stride(source, 0), p.source_block_stride = a.stride(source, 1);
  p.destination_pool_stride = a.stride("destination", 0),
  p.destination_block_stride = a.stride("destination", 1);
  p.block_bytes = a.dim("block_bytes"), p.num_pools = int(a.dim("pools")), p.num_pairs = int(a.dim("pairs"));
  p.source_blocks = int(apart ? a.dim("source_blocks") : a.dim("destination_blocks"));
  p.destination_blocks = int(a.dim("destination_blocks"));
  p.same_pools = p.source == p.destination;
  require(!p.same_pools || (p.source_pool_stride == p.destination_pool_stride &&
                            p.source_block_stride == p.destination_block_stride),
          "source and destination begin at one address, but their strides differ");
  p.pairs = a.data<const int32_t>("block_pairs"), p.refused = a.data<int32_t>("refused");
  p.accepted = WorkspaceParts(workspace).take<int32_t>(p.num_pairs);
  require(p.block_bytes % 16 == 0, "block_bytes is %lld; it must be a multiple of 16",
          (long long)p.block_bytes);
  for (int64_t stride : {p.source_pool_stride, p.source_block_stride, p.destination_pool_stride,
                         p.destination_block_stride})
    require(stride % 16 == 0, "a stride of %lld bytes; it must be a multiple of 16", (long long)stride);
  const int64_t chunks = (p.block_bytes + kBlockCopyChunk - 1) / kBlockCopyChunk;
  const int64_t items = chunks * p.num_pools * p.num_pairs;
  require(items <= INT32_MAX, "%d pairs in %d pools are too many for one launch", p.num_pairs, p.num_pools);
  if (items == 0) return;

  const int pairs_of_block = kBlockCopyThreads / 32;
  ptx::launch(block_copy_accept_kernel, dim3(unsigned((p.num_pairs + pairs_of_block - 1) / pairs_of_block)),
              dim3(kBlockCopyThreads), 0, stream, p);
  const int64_t asked = a.integer("thread_blocks"), most = asked > 0 ? asked : int64_t(8) * device().sm_count;
  ptx::launch(block_copy_kernel, dim3(unsigned(std::min(items, most))), dim3(kBlockCopyThreads), 0, stream,
              p);
}

}  // namespace

const Operator kBlockCopy = {
    "block_copy",
    "listed cache blocks of all pools from one place to another: within the pools (copy on write), or to and "
    "from others (swap out, swap in)",
    {},
    {strided(optional_input(
         "source", "uint8", {"pools", "source_blocks", "block_bytes"},
         "pools that are read; absent: destination itself. Pinned host memory that the device can "
         "reach, or device memory")),
     strided(inout("destination", "uint8", {"pools", "destination_blocks", "block_bytes"},
                   "pools that are written, of the same two kinds of memory")),
     input("block_pairs", "int32", {"pairs", "2"},
           "source and destination block; skipped when either is negative"),
     inout("refused", "int32", {"1"},
           "goes up by the pairs not carried out: a block out of range, two pairs with one destination, a "
           "destination that another pair reads")},
    {integer_attribute(
        "thread_blocks", 0, 0, 65535,
        "how wide the copy runs; 0: as wide as the device. Few (8 to 32) fill a host link and leave the "
        "multiprocessors to others")},
    workspace,
    run,
    {"block_bytes and strides: multiples of 16", "source and destination: the same pools, or without overlap",
     "pools are a stack (one allocation for all layers) or one call each"}};
REGISTER_OPERATOR(kBlockCopy)

}  // namespace slipway
