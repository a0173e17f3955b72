// Tokens of the last step to the rows of the next one that begin with them, on the device: so that the next step is
// planned, bound and queued before the host knows what was sampled.
#pragma once
#include <cstdint>

#include "slipway/ptx.cuh"

namespace slipway {

struct CarryTokensParams {
  const int32_t* sampled;  // [rows]: tokens of the last step; negative where none could be chosen
  const int32_t* source;   // [tokens]: row of `sampled` for each token; outside [0, rows) the token stays
  int32_t* input_ids;      // [tokens]
  int rows, tokens;
};

constexpr int kCarryTokensThreads = 256;

// Grid (ceil(tokens / kCarryTokensThreads)).
__global__ void __launch_bounds__(kCarryTokensThreads) carry_tokens_kernel(CarryTokensParams p) {
  const int t = int(blockIdx.x) * kCarryTokensThreads + int(threadIdx.x);
  if (t >= p.tokens) return;
  const int row = p.source[t];
  if (row < 0 || row >= p.rows) return;
  const int token = p.sampled[row];
  p.input_ids[t] = token < 0 ? 0 : token;
}

}  // namespace slipway
