// Rows of the table that penalties are taken from, for requests that begin.
#pragma once
#include <cstdint>

#include "slipway/ptx.cuh"

namespace slipway {
namespace sampling {

struct TokenCounts {
  int16_t* table;              // [slots, vocab]: times chosen (15 bits, saturating); bit 15: in the prompt
  int slots, vocab;
  const int32_t* tokens;       // [total]; outside [0, vocab) they are not counted
  const int32_t* cu_tokens;    // [requests + 1]: start of each request's tokens; first 0, last at most total
  const int32_t* prompt_lens;  // [requests]: so many tokens are the prompt; those after them were chosen
  const int32_t* count_slots;  // [requests], none twice; outside [0, slots): nothing is written
};

// Grid (requests).
__global__ void __launch_bounds__(512) token_counts_kernel(TokenCounts p) {
  const int request = int(blockIdx.x), slot = p.count_slots[request];
  if (slot < 0 || slot >= p.slots) return;
  // The row's tokens are of 16 bits, and so are the atomics: neighbours in a word may be another request's.
  unsigned short* const row = reinterpret_cast<unsigned short*>(p.table + int64_t(slot) * p.vocab);
  for (int i = int(threadIdx.x); i < p.vocab; i += int(blockDim.x)) row[i] = 0;
  __syncthreads();
  const int begin = p.cu_tokens[request], end = p.cu_tokens[request + 1], chosen = begin + p.prompt_lens[request];
  for (int i = begin + int(threadIdx.x); i < end; i += int(blockDim.x)) {
    const int token = p.tokens[i];
    if (token < 0 || token >= p.vocab) continue;
    unsigned short before = 0, after = 0;
    do {
      before = after;
      unsigned short next = before;
      if (i < chosen) next |= 0x8000;
      else if ((before & 0x7fff) != 0x7fff) next++;
      after = next == before ? before : atomicCAS(&row[token], before, next);
    } while (after != before);
  }
}

}  // namespace sampling
}  // namespace slipway
