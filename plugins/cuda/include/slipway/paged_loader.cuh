// The stream of key and value tiles that a worker needs, fetched from the pools ahead of their use.
#pragma once
#include "slipway/paged_pool.cuh"

namespace slipway {

constexpr int kPagedThreads = 128, kPagedWarps = kPagedThreads / 32;
constexpr int kMaxStages = 4;
// Keys of a tile. The widest heads take fewer, so that two stages fit the shared memory of every chip.
template <int D>
constexpr int kTileKeys = D <= 128 ? 64 : 32;

// Goes through the units of worker blockIdx.x. The first half of the workers begin with the units that are not split
// (bound by arithmetic), the others with the split ones (bound by memory): so both are under way on each
// multiprocessor.
struct UnitCursor {
  int unit, end;
  int kinds;  // of units that were gone through; 2: done

  __device__ __forceinline__ explicit UnitCursor(const PagedAttentionParams& p) : kinds(-1) { next_kind(p); }
  __device__ __forceinline__ bool done() const { return kinds == 2; }
  __device__ __forceinline__ void advance(const PagedAttentionParams& p) {
    if (++unit >= end) next_kind(p);
  }
  __device__ __forceinline__ AttentionItem item(const PagedAttentionParams& p) const {
    const int first = split() ? p.plan.header[kPlanTiles] : 0;
    const int4* raw = reinterpret_cast<const int4*>(p.plan.items + first + unit / p.limits.kv_heads);
    const int4 a = raw[0], b = raw[1];
    return {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
  }
  __device__ __forceinline__ int kv_head(const PagedAttentionParams& p) const { return unit % p.limits.kv_heads; }

 private:
  __device__ __forceinline__ bool split() const { return (blockIdx.x * 2 >= gridDim.x) != (kinds == 1); }
  __device__ __forceinline__ void next_kind(const PagedAttentionParams& p) {
    while (++kinds < 2) {
      const int* begin = p.plan.worker_begin + (split() ? gridDim.x + 1 : 0) + blockIdx.x;
      unit = begin[0], end = begin[1];
      if (unit < end) return;
    }
  }
};

// One stage of shared memory: keys [Keys][D], values [Keys][D], and with scales a token [2][Keys] of these.
template <class T, PoolKind Kind, int D>
struct PagedStage {
  using Element = typename PoolType<T, Kind>::type;
  static constexpr int kKeys = kTileKeys<D>, kTile = kKeys * D;
  static constexpr size_t kBytes = 2 * kTile * sizeof(Element) + (Kind == PoolKind::k16Bit ? 0 : 8 * kKeys);
  Element *keys, *values;
  float *key_scales, *value_scales;

  __device__ __forceinline__ PagedStage(unsigned char* smem, int stage) {
    keys = reinterpret_cast<Element*>(smem + stage * kBytes);
    values = keys + kTile;
    key_scales = reinterpret_cast<float*>(values + kTile);
    value_scales = key_scales + kKeys;
  }
};

template <class T, PoolKind Kind, int D>
class PagedLoader {
  using Stage = PagedStage<T, Kind, D>;
  using Element = typename Stage::Element;
  using Layout = TileLayout<Element, D>;
  static constexpr int kKeys = Stage::kKeys;
  static constexpr int kRowStep = kPagedThreads / Layout::kChunks;  // rows that the threads copy at a time
  static constexpr int kPasses = kKeys / kRowStep;
  static constexpr int kGroups = kKeys / 16;  // blocks hold at least 16 keys, and tiles begin at multiples of 16

 public:
  __device__ __forceinline__ PagedLoader(const PagedAttentionParams& params, unsigned char* smem)
      : p_(params), cursor_(params), smem_(smem), stage_(0) {
    open_item(int(threadIdx.x));
  }

  // Starts the copies of the next tile, if there is one, as one group of cp.async. Its stage must be free.
  __device__ __forceinline__ void fetch() {
    if (!cursor_.done()) {
      const int thread = ptx::fresh_thread();  // addresses are made anew: registers are dearer
      copy_tile(thread);
      key_ += kKeys;
      if (key_ < item_end_) {
        find_blocks(thread);
      } else {
        cursor_.advance(p_);
        open_item(thread);
      }
    }
    ptx::cp_async_commit();
    stage_ = stage_ + 1 == p_.stages ? 0 : stage_ + 1;
  }

 private:
  struct Source {
    int64_t slot;  // row of a pool; 0 when not valid
    bool valid;    // the row is a key of the item; others become zero
  };

  __device__ __forceinline__ void open_item(int thread) {
    if (cursor_.done()) return;
    const AttentionItem item = cursor_.item(p_);
    kv_head_ = cursor_.kv_head(p_);
    item_begin_ = item.key_begin, item_end_ = item.key_end;
    key_ = item_begin_ / kKeys * kKeys;
    table_ = p_.block_table + int64_t(item.sequence) * p_.max_blocks;
    find_blocks(thread);
  }

  // Block of key `key`, or -1 when it lies outside of the item.
  __device__ __forceinline__ int block_of(int key) const {
    if (key < item_begin_ || key >= item_end_) return -1;
    const int block = table_[key >> p_.block_shift];
    ptx::device_check(block >= 0 && block < p_.num_blocks, "paged_attention: block_table names a block out of range");
    return unsigned(block) < unsigned(p_.num_blocks) ? block : -1;
  }

  // Looks the next tile's blocks up, long before they are needed: lane l that of group l % kGroups, for all of its
  // warp. A block is that of a group's first or, where the item begins within the group, last key.
  __device__ __forceinline__ void find_blocks(int thread) {
    const int key = key_ + thread % kGroups * 16;
    block_ = block_of(min(max(key, item_begin_), key + 15));
  }

  // Where row `r` of the tile is in the pools. All lanes of the warp call it.
  __device__ __forceinline__ Source source(int r) const {
    const int key = key_ + r, block = __shfl_sync(0xffffffffu, block_, r / 16);
    const bool valid = key >= item_begin_ && key < item_end_ && block >= 0;
    const int in_block = (1 << p_.block_shift) - 1;
    return {valid ? (int64_t(block) << p_.block_shift) + (key & in_block) : 0, valid};
  }

  __device__ __forceinline__ static int row(int thread, int pass) {
    return thread / Layout::kChunks + pass * kRowStep;
  }

  __device__ __forceinline__ void copy_tile(int thread) const {
    const Stage stage(smem_, stage_);
    const int chunk = thread % Layout::kChunks, column = chunk * Layout::kPerChunk;
#pragma unroll
    for (int pass = 0; pass < kPasses; pass++) {
      const int r = row(thread, pass);
      const auto [slot, valid] = source(r);
      const int64_t head_row = slot * p_.limits.kv_heads + kv_head_;
      copy_chunk(stage.keys + Layout::at(r, chunk), p_.key_cache, head_row, column, p_.key_dim, valid);
      copy_chunk(stage.values + Layout::at(r, chunk), p_.value_cache, head_row, column, p_.value_dim, valid);
    }
    if (Kind != PoolKind::k16Bit && p_.token_scales && thread < 2 * kKeys) {
      const int r = thread % kKeys;
      const bool of_keys = thread < kKeys;
      const auto [slot, valid] = source(r);
      const float* from = of_keys ? p_.key_scale : p_.value_scale;
      ptx::cp_async_small<4>((of_keys ? stage.key_scales : stage.value_scales) + r,
                             from + slot * p_.limits.kv_heads + kv_head_, valid);
    }
  }

  // Rows of 8-bit elements may be multiples of 8 bytes only.
  __device__ __forceinline__ void copy_chunk(Element* to, const void* pool, int64_t head_row, int column, int columns,
                                             bool valid) const {
    const Element* from = static_cast<const Element*>(pool) + head_row * columns;
    if (Kind == PoolKind::k16Bit || columns % 16 == 0) {
      valid = valid && column < columns;
      ptx::cp_async_16(to, from + (valid ? column : 0), valid);
    } else {
#pragma unroll
      for (int half = 0; half < 16; half += 8) {
        const bool inside = valid && column + half < columns;
        ptx::cp_async_small<8>(to + half, from + (inside ? column + half : 0), inside);
      }
    }
  }

  const PagedAttentionParams& p_;
  UnitCursor cursor_;
  unsigned char* smem_;
  int stage_;
  int kv_head_ = 0, key_ = 0, item_begin_ = 0, item_end_ = 0;
  const int* table_ = nullptr;
  int block_ = -1;
};

// The loader and the stages that it has filled, as seen by the threads that compute.
template <class T, PoolKind Kind, int D>
class PagedPipe {
 public:
  using Stage = PagedStage<T, Kind, D>;
  __device__ __forceinline__ PagedPipe(const PagedAttentionParams& params, unsigned char* smem)
      : loader_(params, smem), smem_(smem), stages_(params.stages), stage_(params.stages - 1) {
    for (int i = 0; i < stages_ - 1; i++) loader_.fetch();
  }

  // The next tile; the one before it is given up. All threads of the block call it.
  __device__ __forceinline__ Stage next() {
    stage_ = stage_ + 1 == stages_ ? 0 : stage_ + 1;
    if (stages_ == 2) ptx::cp_async_wait<0>();
    else if (stages_ == 3) ptx::cp_async_wait<1>();
    else ptx::cp_async_wait<2>();
    __syncthreads();  // the copies of all threads have arrived, and all are done with the tile before
    loader_.fetch();
    return Stage(smem_, stage_);
  }

  __device__ __forceinline__ static void drain() { ptx::cp_async_wait<0>(); }

 private:
  PagedLoader<T, Kind, D> loader_;
  unsigned char* smem_;
  int stages_, stage_;
};

}  // namespace slipway
