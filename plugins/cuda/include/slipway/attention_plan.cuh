// The work list of paged attention: written once a step on the device, read by every layer.
//
// The host knows shapes, never lengths. It launches a fixed number of workers (blocks), and the plan tells each
// which units to compute. A unit is an item and one key head; an item is up to 64 query rows and a range of keys of
// one sequence. A row is a new token and a query head: row r is token r / group, head r % group of the key head,
// where group = heads / kv_heads.
//
// A sequence with at most `max_split_tokens` new tokens is split: its keys are cut at fixed positions, multiples of
// `chunk` counted from its first key, one item a chunk and 64 rows; the chunks' results are merged in their order.
// So what a sequence gets depends on nothing but itself. Others are not split: one item for every 64 rows.
//
// Shared prefixes (cascade): of sequences that name the same leader, the chunks which lie wholly in the prefix of all
// of them are computed once for the rows of all, at the same cuts.
#pragma once
#include <cstdint>

#include "slipway/ptx.cuh"

namespace slipway {

constexpr int kPlanRows = 64;  // rows of an item
constexpr int kPlanKeys = 64;  // chunks are multiples of this
constexpr int kPlanItemCost = 2;   // cost of an item apart from its keys, in kPlanKeys keys
constexpr int kMaxPlanBatch = 4096;

// What a plan is sized by: known on the host.
struct AttentionLimits {
  int batch;             // sequences of a step
  int tokens;            // new tokens of a step, padding included
  int heads, kv_heads;   // of queries and keys
  int max_length;        // max_blocks * block_size
  int64_t pool_tokens;   // num_blocks * block_size
  int window;            // a query sees the `window` last keys, its own included; -1: all
  int chunk;             // keys, a multiple of 64
  int max_split_tokens;  // sequences with more new tokens are not split
  int workers;           // parts that the units are dealt out to
};

struct AttentionItem {  // 32 bytes
  int sequence;         // whose row of the block table is read
  int first_row, rows;  // rows of the sequence, or of the list of a shared prefix; at most kPlanRows
  int key_begin, key_end;  // positions in the sequence
  int chunk;               // number of the chunk, counted from position 0; -1: the sequence is not split
  int list;                // -1, or where the tokens of the shared prefix begin in `shared_tokens`
  int cost_before;         // sum of the costs (of one key head) of the items of its kind that come before
};

struct AttentionSequence {  // 32 bytes
  int first_chunk, chunks;  // chunks that any of its tokens sees; chunks 0: not split, or nothing to do
  int slot;       // partial results: that of token i and chunk c is slot + i * chunks + c - first_chunk; -1: there are
                  // none, because one chunk is all and is written as the result
  int own_chunk;  // chunks from first_chunk to here are computed with those of its shared prefix
  int list;       // where its tokens begin in shared_tokens; -1: it shares nothing
  int list_tokens;  // of all sequences of its shared prefix, when it is the first of them; else -1 - the first; else 0
  int item, tile;   // numbers of its first split item and its first unsplit one
};

enum AttentionPlanHeader {
  kPlanSignature,  // kAttentionPlanSignature
  kPlanChunk,      // the chunk in use: `chunk`, doubled until the partial results fit their capacity
  kPlanTiles,      // items that are not split; they come first
  kPlanSplits,     // split items
  kPlanMerged,     // tokens with more than one chunk
  kPlanWorkers,
  kPlanHeads,
  kPlanKvHeads,
  kPlanBatch,
  kPlanTokens,
  kPlanHeaderInts = 16
};
constexpr int kAttentionPlanSignature = 0x51770001;

// Capacities, and where the arrays of a plan begin, in ints from its base (aligned to 16 bytes).
struct AttentionPlanLayout {
  int64_t slots;        // partial results that a step can have: pairs of a token and a chunk
  int64_t split_tokens;  // tokens of split sequences that a step can have
  int64_t items;        // of both kinds
  int64_t sequences_at, items_at, token_sequence_at, merged_at, shared_tokens_at, worker_begin_at, ints;

  static constexpr int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
  static constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

  explicit constexpr AttentionPlanLayout(const AttentionLimits& l)
      : slots(0), split_tokens(0), items(0), sequences_at(kPlanHeaderInts), items_at(0), token_sequence_at(0),
        merged_at(0), shared_tokens_at(0), worker_begin_at(0), ints(0) {
    const int64_t group = l.heads / l.kv_heads, split = least(l.max_split_tokens, l.tokens);
    split_tokens = least(l.tokens, split * l.batch);
    int64_t chunks = ceil_div(l.max_length, l.chunk);
    if (l.window >= 0) chunks = least(chunks, ceil_div(int64_t(l.window) + split, l.chunk) + 1);
    // Sequences that share no blocks have at most pool_tokens keys together. Only more than one chunk takes slots.
    slots = chunks > 1 ? least(split_tokens * chunks, split * (l.pool_tokens / l.chunk + l.batch)) : 0;
    items = slots * ceil_div(group, kPlanRows) + l.batch * (ceil_div(split * group, kPlanRows) + 1) +
            ceil_div(l.tokens * group, kPlanRows);
    items_at = sequences_at + 8 * int64_t(l.batch);
    token_sequence_at = items_at + 8 * items;
    merged_at = token_sequence_at + l.tokens;
    shared_tokens_at = merged_at + split_tokens;
    worker_begin_at = shared_tokens_at + split_tokens;
    ints = worker_begin_at + 2 * (int64_t(l.workers) + 1);
  }
};

// A plan in device memory.
//   header          [16] AttentionPlanHeader
//   sequences       [batch] AttentionSequence
//   items           [items] AttentionItem, first those that are not split
//   token_sequence  [tokens] sequence of each token; -1: padding
//   merged          [split_tokens] tokens whose partial results are to be merged, ascending
//   shared_tokens   [split_tokens] tokens of the shared prefixes, prefix after prefix
//   worker_begin    [2][workers + 1] first unit of each worker, of either kind; unit u is item u / kv_heads of its
//                   kind and key head u % kv_heads
struct AttentionPlan {
  int* header;
  AttentionSequence* sequences;
  AttentionItem* items;
  int *token_sequence, *merged, *shared_tokens, *worker_begin;

  AttentionPlan() = default;
  AttentionPlan(int* metadata, const AttentionPlanLayout& layout)  // on the host: layouts take divisions
      : header(metadata),
        sequences(reinterpret_cast<AttentionSequence*>(metadata + layout.sequences_at)),
        items(reinterpret_cast<AttentionItem*>(metadata + layout.items_at)),
        token_sequence(metadata + layout.token_sequence_at),
        merged(metadata + layout.merged_at),
        shared_tokens(metadata + layout.shared_tokens_at),
        worker_begin(metadata + layout.worker_begin_at) {}
};

struct AttentionPlanParams {
  const int* cu_seqlens;     // [batch + 1], first 0, never decreasing, last at most `tokens`
  const int* past_lens;      // [batch]; past_lens[b] + new tokens of b at most max_length
  const int* prefix_leader;  // [batch] sequence whose prefix this one shares, itself when none; nullptr: none share
  const int* prefix_lens;    // [batch] keys that it shares with its leader (same blocks); nullptr with prefix_leader
  int* metadata;             // [AttentionPlanLayout(limits).ints], aligned to 16 bytes, written
  AttentionLimits limits;
};

}  // namespace slipway
