// The tensors of the next decode step from the tokens of the last one, on the device: what the decoder
// contract calls input_ids, position_ids, cu_seqlens, past_lens, slot_mapping and logits_indices. So a decode
// step is one replay of a CUDA graph, and the host looks at the results when it likes.
#pragma once
#include <cstdint>

#include "slipway/ptx.cuh"

namespace slipway {

// The state of a row of the batch, between steps. A sequence joins, at any time, as kStepWaiting with its
// first token to compute in next_token; a row whose blocks have run out goes on by itself when the block
// table has got more.
enum StepStatus : int32_t {
  kStepEmpty = 0,      // no sequence
  kStepRunning = 1,    // its rows are in the step; a token is awaited
  kStepWaiting = 2,    // next_token waits for a step: it has just joined, or there is no block for it
  kStepStopped = 3,    // ended by one of its stop tokens
  kStepExhausted = 4,  // ended because it may have no more tokens
  kStepFailed = 5,     // ended by a negative token: there was none to choose, its logits are no numbers
};

// Speculation: a row of the last step had 1 + drafts tokens, of which num_accepted drafts proved right; then
// num_accepted + 1 of its sampled tokens count. Without drafts, width is 1 and num_accepted null.
struct StepPrepareParams {
  const int32_t* sampled = nullptr;       // [batch, width] what the last step gave; read where rows run
  const int32_t* num_accepted = nullptr;  // [batch] 0 to width - 1; null: 0
  const int32_t* draft_tokens = nullptr;  // [batch, drafts] guesses of what comes next, up to a negative one
  const int32_t* stop_tokens = nullptr;   // [batch, stops] tokens that end a sequence; -1: none
  const int32_t* block_table = nullptr;   // [batch, max_blocks] -1: no block

  // In and out, [batch].
  int32_t* status = nullptr;      // StepStatus
  int32_t* past_lens = nullptr;   // tokens in the cache before the last step; before the next one
  int32_t* remaining = nullptr;   // tokens that the sequence may still give; at least 1 while it runs
  int32_t* next_token = nullptr;  // the newest token, whose key and value are not in the cache yet
  int32_t* num_sampled = nullptr;  // tokens that the sequence has given: the sampler's position; optional

  // Out.
  int32_t* num_new_tokens = nullptr;  // [batch] how many of `sampled` the sequence got; 0 unless it ran
  int32_t* input_ids = nullptr;       // [tokens] sequence after sequence; 0 in the padding behind them
  int32_t* position_ids = nullptr;    // [tokens] 0 in the padding
  int32_t* slot_mapping = nullptr;    // [tokens] -1 in the padding
  int32_t* cu_seqlens = nullptr;      // [batch + 1]; rows of the batch that take no part have no tokens
  int32_t* logits_indices = nullptr;  // [batch, 1 + drafts] token of each wanted row; the last one repeated
                                      // when there are fewer, 0 when there are none

  int batch = 0, width = 1, drafts = 0, stops = 0, max_blocks = 0, block_size = 0;
  int tokens = 0;  // at least batch * (1 + drafts)
};

constexpr int kStepPrepareThreads = 256;

namespace step_prepare {

// A sequence between two steps.
struct Row {
  int status, past, remaining, token;
  int num_new;  // tokens that it got from the last step
};

__device__ __forceinline__ bool is_stop(const StepPrepareParams& p, int b, int token) {
  for (int i = 0; i < p.stops; i++) {
    const int stop = p.stop_tokens[int64_t(b) * p.stops + i];
    if (stop == token) return true;
  }
  return false;
}

// Takes in what the last step gave: nothing unless the sequence ran.
__device__ __forceinline__ void advance(const StepPrepareParams& p, int b, Row& row) {
  row.num_new = 0;
  if (row.status != kStepRunning) return;
  const int accepted = p.num_accepted != nullptr ? p.num_accepted[b] : 0;
  ptx::device_check(accepted >= 0 && accepted < p.width, "num_accepted is beyond the sampled tokens");
  const int most = accepted + 1 < row.remaining ? accepted + 1 : row.remaining;
  row.status = kStepWaiting;
  while (row.num_new < most && row.status == kStepWaiting) {
    const int token = p.sampled[int64_t(b) * p.width + row.num_new];
    if (token < 0) {
      row.status = kStepFailed;
    } else {
      row.token = token, row.num_new++;
      if (is_stop(p, b, token)) row.status = kStepStopped;
    }
  }
  row.past += row.num_new, row.remaining -= row.num_new;
  if (row.status == kStepWaiting && row.remaining <= 0) row.status = kStepExhausted;
}

// The slot of a position; -1 when the sequence has no block for it.
__device__ __forceinline__ int slot_of(const StepPrepareParams& p, int b, int position) {
  const int index = position / p.block_size;
  const int block = index < p.max_blocks ? p.block_table[int64_t(b) * p.max_blocks + index] : -1;
  return block < 0 ? -1 : block * p.block_size + position % p.block_size;
}

// Tokens of the sequence in the next step: the newest one, and drafts that exist, have a slot and may be
// needed.
__device__ __forceinline__ int tokens_of(const StepPrepareParams& p, int b, const Row& row) {
  if (row.status != kStepWaiting || row.remaining < 1 || slot_of(p, b, row.past) < 0) return 0;
  int count = 1;
  while (count <= p.drafts && count < row.remaining &&
         p.draft_tokens[int64_t(b) * p.drafts + count - 1] >= 0 && slot_of(p, b, row.past + count) >= 0)
    count++;
  return count;
}

// Sum of `count` over the threads of the block before this one, and over all of them. `warp_sums`: shared, an
// int a warp. Every thread of the block calls it.
__device__ __forceinline__ int sum_before(int count, int* warp_sums, int& total) {
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  int sum = count;
  for (int i = 1; i < 32; i *= 2) {
    const int before = __shfl_sync(0xffffffffu, sum, lane - i);
    if (lane >= i) sum += before;
  }
  if (lane == 31) warp_sums[warp] = sum;
  __syncthreads();
  int before = sum - count;
  total = 0;
  for (int w = 0; w < kStepPrepareThreads / 32; w++) {
    if (w < warp) before += warp_sums[w];
    total += warp_sums[w];
  }
  __syncthreads();  // warp_sums may be written again from here on
  return before;
}

}  // namespace step_prepare

// One block.
__global__ void __launch_bounds__(kStepPrepareThreads) step_prepare_kernel(StepPrepareParams p) {
  using namespace step_prepare;
  DYNAMIC_SMEM(smem);
  int* warp_sums = reinterpret_cast<int*>(smem);  // [kStepPrepareThreads / 32]
  int begin = 0;                                  // tokens of the sequences before
  for (int first = 0; first < p.batch; first += kStepPrepareThreads) {
    const int b = first + int(threadIdx.x);
    Row row = {kStepEmpty, 0, 0, 0, 0};
    int count = 0;
    if (b < p.batch) {
      row = {p.status[b], p.past_lens[b], p.remaining[b], p.next_token[b], 0};
      advance(p, b, row);
      count = tokens_of(p, b, row);
      if (count > 0) row.status = kStepRunning;
    }
    int total;
    const int start = begin + sum_before(count, warp_sums, total);
    begin += total;
    if (b >= p.batch) continue;
    p.status[b] = row.status, p.past_lens[b] = row.past, p.remaining[b] = row.remaining;
    p.next_token[b] = row.token, p.num_new_tokens[b] = row.num_new;
    if (p.num_sampled != nullptr) p.num_sampled[b] += row.num_new;
    p.cu_seqlens[b] = start;
    for (int i = 0; i < count; i++) {
      p.input_ids[start + i] = i == 0 ? row.token : p.draft_tokens[int64_t(b) * p.drafts + i - 1];
      p.position_ids[start + i] = row.past + i;
      p.slot_mapping[start + i] = slot_of(p, b, row.past + i);
    }
    for (int i = 0; i <= p.drafts; i++)
      p.logits_indices[int64_t(b) * (p.drafts + 1) + i] =
          count == 0 ? 0 : start + (i < count ? i : count - 1);
  }
  if (threadIdx.x == 0) p.cu_seqlens[p.batch] = begin;
  for (int i = begin + int(threadIdx.x); i < p.tokens; i += kStepPrepareThreads)
    p.input_ids[i] = 0, p.position_ids[i] = 0, p.slot_mapping[i] = -1;
}

}  // namespace slipway
