// Writes the work list of paged attention. One block: a plan is a few scans over the sequences of a step.
#pragma once
#include "slipway/attention_plan.cuh"

namespace slipway {

constexpr int kPlanThreads = 256, kPlanWarps = kPlanThreads / 32;

// Exclusive sums of N numbers over the threads of the block, and their totals. scratch: [kPlanWarps][N] in shared
// memory. All threads call it.
template <int N>
__device__ __forceinline__ void block_scan(int (&value)[N], int (&total)[N], int* scratch) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  __syncthreads();  // the last scan's totals have been read
#pragma unroll
  for (int n = 0; n < N; n++) {
    const int own = value[n];
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int other = __shfl_sync(0xffffffffu, value[n], max(lane - step, 0));
      if (lane >= step) value[n] += other;
    }
    if (lane == 31) scratch[warp * N + n] = value[n];
    value[n] -= own;
  }
  __syncthreads();
#pragma unroll
  for (int n = 0; n < N; n++) {
    total[n] = 0;
    for (int w = 0; w < kPlanWarps; w++) {
      if (w < warp) value[n] += scratch[w * N + n];
      total[n] += scratch[w * N + n];
    }
  }
}

__device__ __forceinline__ int warp_sum(int x) {
#pragma unroll
  for (int step = 1; step < 32; step *= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}
__device__ __forceinline__ int warp_min(int x) {
#pragma unroll
  for (int step = 1; step < 32; step *= 2) x = min(x, __shfl_xor_sync(0xffffffffu, x, step));
  return x;
}

struct SequenceFacts {
  int begin, new_tokens, past;
  bool split;
  int first_chunk, chunks;  // when it is split
};
__device__ __forceinline__ SequenceFacts sequence_facts(const AttentionPlanParams& p, int sequence, int chunk) {
  SequenceFacts f;
  f.begin = p.cu_seqlens[sequence];
  f.new_tokens = p.cu_seqlens[sequence + 1] - f.begin;
  f.past = p.past_lens[sequence];
  const int length = f.past + f.new_tokens;
  ptx::device_check(f.new_tokens >= 0 && f.past >= 0 && length <= p.limits.max_length,
                    "attention_plan: a sequence longer than its row of the block table, or a negative length");
  f.split = f.new_tokens > 0 && f.new_tokens <= p.limits.max_split_tokens;
  f.first_chunk = f.chunks = 0;
  if (f.split) {
    const int end = (length + chunk - 1) / chunk;
    const int seen = p.limits.window < 0 ? 0 : max(0, f.past + 1 - p.limits.window);
    f.first_chunk = min(seen / chunk, end - 1);
    f.chunks = end - f.first_chunk;
  }
  return f;
}

__device__ __forceinline__ int item_cost(const AttentionItem& item) {
  return (item.key_end + kPlanKeys - 1) / kPlanKeys - item.key_begin / kPlanKeys + kPlanItemCost;
}

// What the sequences that share a prefix with `sequence` have in common. eligible: [batch] leader of each sequence
// that may share, else -1; covered: [batch] whole chunks in its prefix. All lanes of a warp call it.
struct SharedPrefix {
  int members, first, chunks, tokens, tokens_before;
};
__device__ __forceinline__ SharedPrefix find_shared_prefix(const int* leader, const int* covered, const int* tokens,
                                                           int batch, int sequence) {
  SharedPrefix s{0, batch, 1 << 30, 0, 0};
  for (int j = threadIdx.x % 32; j < batch; j += 32) {
    if (leader[j] != leader[sequence]) continue;
    s.members++;
    s.first = min(s.first, j);
    s.chunks = min(s.chunks, covered[j]);
    s.tokens += tokens[j];
    if (j < sequence) s.tokens_before += tokens[j];
  }
  return {warp_sum(s.members), warp_min(s.first), warp_min(s.chunks), warp_sum(s.tokens), warp_sum(s.tokens_before)};
}

// Shared memory: scratch [kPlanWarps][5], then leader, covered and new tokens [batch] each.
inline size_t attention_plan_smem(int batch) { return sizeof(int) * size_t(kPlanWarps * 5 + 3 * batch); }

// The largest chunk of `limits.chunk` times a power of two at which the partial results fit.
__device__ __forceinline__ int fitting_chunk(const AttentionPlanParams& p, int slots, int* scratch) {
  int chunk = p.limits.chunk;
  while (true) {
    int needed[1] = {0}, total[1];
    for (int b = threadIdx.x; b < p.limits.batch; b += kPlanThreads) {
      const SequenceFacts f = sequence_facts(p, b, chunk);
      if (f.chunks > 1) needed[0] += f.chunks * f.new_tokens;
    }
    block_scan(needed, total, scratch);
    if (total[0] <= slots) return chunk;
    chunk *= 2;
  }
}

// Everything about one sequence but where its parts begin; `slot`, `item` and `tile` are counts yet, and `list` is
// counted from the beginning of its shared prefix. Written by the warp's first lane.
__device__ __forceinline__ void describe_sequence(const AttentionPlanParams& p, const AttentionPlan& plan, int b,
                                                  int chunk, const int* leader, const int* covered,
                                                  const int* tokens) {
  const SequenceFacts f = sequence_facts(p, b, chunk);
  const int group = p.limits.heads / p.limits.kv_heads, rows = f.new_tokens * group;
  const int tiles = (rows + kPlanRows - 1) / kPlanRows;
  AttentionSequence s{f.first_chunk, f.chunks, f.chunks > 1 ? f.chunks * f.new_tokens : 0, f.first_chunk, -1, 0, 0, 0};
  if (!f.split) s.tile = tiles;
  if (leader[b] >= 0) {
    const SharedPrefix shared = find_shared_prefix(leader, covered, tokens, p.limits.batch, b);
    if (shared.members > 1) {
      s.own_chunk = shared.chunks;
      s.list = shared.tokens_before;
      s.list_tokens = shared.first == b ? shared.tokens : -1 - shared.first;
      if (shared.first == b) s.item = shared.chunks * ((shared.tokens * group + kPlanRows - 1) / kPlanRows);
    }
  }
  if (f.split) s.item += (f.first_chunk + f.chunks - s.own_chunk) * tiles;
  if (threadIdx.x % 32 == 0) plan.sequences[b] = s;
}

// Item `k` of those of one sequence; those of the prefix it is the first of come first.
__device__ __forceinline__ AttentionItem split_item(const AttentionPlanParams& p, const AttentionSequence& s,
                                                    const SequenceFacts& f, int b, int chunk, int k) {
  const int group = p.limits.heads / p.limits.kv_heads;
  const int shared_rows = max(s.list_tokens, 0) * group, shared_tiles = (shared_rows + kPlanRows - 1) / kPlanRows;
  const int shared_items = (s.own_chunk - s.first_chunk) * shared_tiles;
  const bool is_shared = k < shared_items;
  if (!is_shared) k -= shared_items;
  const int rows = is_shared ? shared_rows : f.new_tokens * group, tiles = (rows + kPlanRows - 1) / kPlanRows;
  AttentionItem item;
  item.sequence = b;
  item.chunk = (is_shared ? s.first_chunk : s.own_chunk) + k / tiles;
  item.first_row = k % tiles * kPlanRows;
  item.rows = min(kPlanRows, rows - item.first_row);
  item.key_end = min((item.chunk + 1) * chunk, f.past + f.new_tokens);
  const int seen = p.limits.window < 0 ? 0 : f.past + 1 - p.limits.window;
  item.key_begin = min(max(item.chunk * chunk, seen), item.key_end - 1);
  item.list = is_shared ? s.list : -1;
  item.cost_before = 0;
  return item;
}

// Item `k` of a sequence that is not split: keys that the first row's token to the last one's see.
__device__ __forceinline__ AttentionItem tile_item(const AttentionPlanParams& p, const SequenceFacts& f, int b,
                                                   int k) {
  const int group = p.limits.heads / p.limits.kv_heads;
  AttentionItem item;
  item.sequence = b;
  item.first_row = k * kPlanRows;
  item.rows = min(kPlanRows, f.new_tokens * group - item.first_row);
  item.key_end = f.past + (item.first_row + item.rows - 1) / group + 1;
  const int seen = p.limits.window < 0 ? 0 : f.past + item.first_row / group + 1 - p.limits.window;
  item.key_begin = min(max(0, seen), item.key_end - 1);
  item.chunk = -1;
  item.list = -1;
  item.cost_before = 0;
  return item;
}

// Adds up the costs of `count` items and deals their units out: worker w begins at the first unit with at least
// w / workers of the whole cost before it. All threads call it.
__device__ __forceinline__ void deal_out(AttentionItem* items, int count, int kv_heads, int workers, int* begin,
                                         int* scratch) {
  int before = 0;
  for (int first = 0; first < count; first += kPlanThreads) {
    const int i = first + int(threadIdx.x);
    int cost[1] = {i < count ? item_cost(items[i]) : 0}, total[1];
    block_scan(cost, total, scratch);
    if (i < count) items[i].cost_before = before + cost[0];
    before += total[0];
  }
  __syncthreads();
  const int64_t whole = int64_t(before) * kv_heads;
  for (int w = threadIdx.x; w <= workers; w += kPlanThreads) {
    const int64_t target = (whole * w + workers - 1) / workers;
    int low = 0, high = count;  // the last item with at most `target` before it, or count - 1
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      if (int64_t(items[middle].cost_before) * kv_heads <= target) low = middle;
      else high = middle;
    }
    if (w == workers || count == 0) {
      begin[w] = count * kv_heads;
    } else {
      const int cost = item_cost(items[low]);
      const int64_t rest = target - int64_t(items[low].cost_before) * kv_heads;
      begin[w] = low * kv_heads + int((rest + cost - 1) / cost);
    }
  }
}

// One block is all there is: the bound of one a multiprocessor lets it have the registers that it wants.
__global__ void __launch_bounds__(kPlanThreads, 1)
    attention_plan_kernel(AttentionPlanParams p, AttentionPlan plan, int slots) {
  DYNAMIC_SMEM(smem);
  const int batch = p.limits.batch, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int* scratch = reinterpret_cast<int*>(smem);
  int* leader = scratch + kPlanWarps * 5;
  int* covered = leader + batch;
  int* tokens = covered + batch;

  const int chunk = fitting_chunk(p, slots, scratch);
  for (int b = threadIdx.x; b < batch; b += kPlanThreads) {
    const SequenceFacts f = sequence_facts(p, b, chunk);
    leader[b] = -1, covered[b] = 0, tokens[b] = f.new_tokens;
    if (p.prefix_leader == nullptr || p.limits.window >= 0 || !f.split) continue;
    const int mine = p.prefix_leader[b];
    ptx::device_check(mine >= 0 && mine < batch, "attention_plan: a prefix leader that is no sequence");
    covered[b] = (mine == b ? f.past : min(p.prefix_lens[b], f.past)) / chunk;
    if (covered[b] > 0) leader[b] = mine;
  }
  __syncthreads();
  for (int b = warp; b < batch; b += kPlanWarps) describe_sequence(p, plan, b, chunk, leader, covered, tokens);
  __syncthreads();

  // Where the parts of each sequence begin.
  int before[5] = {0, 0, 0, 0, 0};  // slots, merged tokens, unsplit items, split items, tokens of shared prefixes
  for (int first = 0; first < batch; first += kPlanThreads) {
    const int b = first + int(threadIdx.x);
    const AttentionSequence s = b < batch ? plan.sequences[b] : AttentionSequence{};
    int count[5] = {s.slot, s.chunks > 1 ? tokens[b] : 0, s.tile, s.item, max(s.list_tokens, 0)}, total[5];
    block_scan(count, total, scratch);
    if (b < batch) {
      plan.sequences[b].slot = s.chunks > 1 ? before[0] + count[0] : -1;
      plan.sequences[b].tile = before[2] + count[2];
      plan.sequences[b].item = before[3] + count[3];
      if (s.list_tokens > 0) plan.sequences[b].list = before[4] + count[4];
      covered[b] = before[1] + count[1];  // from here on: where its merged tokens begin
      leader[b] = s.chunks > 0 ? s.item : s.tile;  // and how many items it has
    }
#pragma unroll
    for (int n = 0; n < 5; n++) before[n] += total[n];
  }
  __syncthreads();

  const int live = p.cu_seqlens[batch], tiles = before[2], splits = before[3];
  AttentionItem* items = plan.items;
  for (int b = warp; b < batch; b += kPlanWarps) {
    const SequenceFacts f = sequence_facts(p, b, chunk);
    AttentionSequence s = plan.sequences[b];
    if (s.list_tokens < 0) s.list += plan.sequences[-1 - s.list_tokens].list;
    for (int i = lane; i < f.new_tokens; i += 32) {
      plan.token_sequence[f.begin + i] = b;
      if (s.chunks > 1) plan.merged[covered[b] + i] = f.begin + i;
      if (s.list >= 0) plan.shared_tokens[s.list + i] = f.begin + i;
    }
    for (int k = lane; k < leader[b]; k += 32) {
      if (f.split) items[tiles + s.item + k] = split_item(p, s, f, b, chunk, k);
      else items[s.tile + k] = tile_item(p, f, b, k);
    }
    __syncwarp();
    if (lane == 0 && s.list_tokens < 0) plan.sequences[b].list = s.list;
  }
  for (int t = live + int(threadIdx.x); t < p.limits.tokens; t += kPlanThreads) plan.token_sequence[t] = -1;
  __syncthreads();

  const int workers = p.limits.workers, kv_heads = p.limits.kv_heads;
  deal_out(items, tiles, kv_heads, workers, plan.worker_begin, scratch);
  deal_out(items + tiles, splits, kv_heads, workers, plan.worker_begin + workers + 1, scratch);
  if (threadIdx.x == 0) {
    const int header[kPlanHeaderInts] = {kAttentionPlanSignature, chunk, tiles, splits, before[1], workers,
                                         p.limits.heads, kv_heads, batch, p.limits.tokens};
    for (int i = 0; i < kPlanHeaderInts; i++) plan.header[i] = header[i];
  }
}

}  // namespace slipway
