// Kernels that go over a matrix row by row (norms, activations): the threads that share a row, what each of them
// keeps of it, and how results leave, quantized or not.
//
// A chunk is eight consecutive elements of a row, 16 bytes of a 16-bit type. Thread t of the n that share a row has
// chunks t, t + n, t + 2n, ... The number of threads follows from the row's length alone, and sums are added in a
// fixed order: a row's result does not depend on how many rows there are.
#pragma once
#include <cstdint>

#include "slipway/numeric.cuh"

namespace slipway {

constexpr int kChunk = 8;
constexpr int kKeptChunks = 4;      // chunks of a row that a thread keeps in registers
constexpr int kMaxRowThreads = 512;
constexpr int kMaxRowWarps = kMaxRowThreads / 32;
constexpr size_t kRowSharedBytes = 2 * kMaxRowWarps * sizeof(float);

// Who has a row, and whether its values stay in registers between the passes over it.
enum class RowForm {
  kWarp,    // a warp a row, kept
  kBlock,   // a block a row, kept
  kReread,  // a block a row, read again in each pass; the only form for rows that are no multiple of a chunk
};

// Threads of a block at most.
constexpr int most_threads(RowForm form) { return form == RowForm::kWarp ? 128 : kMaxRowThreads; }

struct RowPlan {
  RowForm form;
  int threads;         // of a block
  int rows_at_a_time;  // of a block
};
inline RowPlan plan_rows(int64_t columns) {
  const int64_t chunks = (columns + kChunk - 1) / kChunk;
  if (columns % kChunk != 0 || chunks > kKeptChunks * kMaxRowThreads) {
    const int warps = int(chunks < kMaxRowThreads ? (chunks + 31) / 32 : kMaxRowWarps);
    return {RowForm::kReread, 32 * (warps > 0 ? warps : 1), 1};
  }
  constexpr int warp_form = most_threads(RowForm::kWarp);
  if (chunks <= kKeptChunks * 32) return {RowForm::kWarp, warp_form, warp_form / 32};
  const int64_t threads = (chunks + kKeptChunks - 1) / kKeptChunks;
  return {RowForm::kBlock, int(threads + 31) / 32 * 32, 1};
}

// Blocks of a persistent grid: enough to fill each multiprocessor with threads.
inline int64_t row_blocks(const RowPlan& plan, int64_t rows, int sm_count) {
  const int64_t needed = (rows + plan.rows_at_a_time - 1) / plan.rows_at_a_time;
  const int64_t resident = int64_t(sm_count) * (2048 / plan.threads);
  return needed < resident ? needed : resident;
}

// The threads that share a row: a warp or the block.
template <bool kOneWarp>
struct RowTeam {
  int thread, threads;  // this one's number, and how many there are
  float* slots;         // [2][kMaxRowWarps], shared; unused by a warp
  int turn = 0;

  // Every thread gets the same bits. The two halves of `slots` take turns, so that one barrier is enough: a warp
  // that is two reductions ahead would have passed a barrier that the slowest has not reached.
  template <class F>
  __device__ __forceinline__ float reduce(float x, F combine) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) x = combine(x, __shfl_xor_sync(0xffffffffu, x, offset));
    if constexpr (!kOneWarp) {
      float* const slot = slots + turn * kMaxRowWarps;
      turn ^= 1;
      if (thread % 32 == 0) slot[thread / 32] = x;
      __syncthreads();
      x = slot[0];
      for (int warp = 1; warp < threads / 32; warp++) x = combine(x, slot[warp]);
    }
    return x;
  }
  __device__ __forceinline__ float sum(float x) {
    return reduce(x, [](float a, float b) { return a + b; });
  }
  __device__ __forceinline__ float max(float x) {
    return reduce(x, [](float a, float b) { return fmaxf(a, b); });
  }
};

template <class T>
using Chunk = Vector<T, kChunk>;

// Whether each row of an aligned matrix is so too.
__device__ __forceinline__ bool in_chunks(int64_t columns) { return columns % kChunk == 0; }

// The first `count` elements of a chunk; the others become zero. `whole`: all eight, and `p` is aligned.
template <class T>
__device__ __forceinline__ Chunk<T> read_chunk(const T* p, int count, bool whole) {
  if (whole) return Chunk<T>::load(p);
  Chunk<T> chunk;
#pragma unroll
  for (int i = 0; i < kChunk; i++) chunk[i] = i < count ? p[i] : from_float<T>(0.f);
  return chunk;
}
// Writes the first `count` of eight values.
template <class T>
__device__ __forceinline__ void write_chunk(T* p, const float (&x)[kChunk], int count, bool whole) {
  Chunk<T> chunk;
#pragma unroll
  for (int i = 0; i < kChunk; i++) chunk[i] = from_float<T>(x[i]);
  if (whole) return chunk.store(p);
#pragma unroll
  for (int i = 0; i < kChunk; i++)
    if (i < count) p[i] = chunk[i];
}

// The values of one row that fall to one thread. A Source has `fetch(chunk, count)`, which only reads, and
// `expand(fetched, chunk, x)`, which makes floats of it: all reads of a row are in flight before the first is used.
template <RowForm kForm, class Source>
struct RowValues {
  static constexpr bool kKept = kForm != RowForm::kReread;
  const Source& source;
  int64_t columns;
  int chunks, thread, threads;
  float kept[kKept ? kKeptChunks : 1][kChunk];

  __device__ __forceinline__ RowValues(const Source& source_, int64_t columns_, int thread_, int threads_)
      : source(source_), columns(columns_), chunks(int((columns_ + kChunk - 1) / kChunk)), thread(thread_),
        threads(threads_) {
    if constexpr (kKept) {
      typename Source::Fetched fetched[kKeptChunks];
#pragma unroll
      for (int i = 0; i < kKeptChunks; i++)
        if (thread + i * threads < chunks) fetched[i] = source.fetch(thread + i * threads, kChunk);
#pragma unroll
      for (int i = 0; i < kKeptChunks; i++)
        if (thread + i * threads < chunks) source.expand(fetched[i], thread + i * threads, kChunk, kept[i]);
    }
  }

  // Calls f(chunk, count, x) for each chunk of this thread: x[0 .. count) are elements kChunk * chunk and on.
  template <class F>
  __device__ __forceinline__ void each(F f) {
    if constexpr (kKept) {
#pragma unroll
      for (int i = 0; i < kKeptChunks; i++)
        if (thread + i * threads < chunks) f(thread + i * threads, kChunk, kept[i]);
    } else {
      for (int chunk = thread; chunk < chunks; chunk += threads) {
        const int64_t left = columns - int64_t(chunk) * kChunk;
        const int count = left < kChunk ? int(left) : kChunk;
        float x[kChunk];
        source.expand(source.fetch(chunk, count), chunk, count, x);
        f(chunk, count, x);
      }
    }
  }
};

// How a result leaves: as T itself, or as a code, round to nearest even of result / scale, no code beyond
// +-127 (int8) or +-448 (e4m3): symmetric. The scale is given, one for all (`scale`), or is the row's own,
// the largest |result| / 127 or 448, and written to `row_scale`. A row whose own scale would be less than the least
// normal float has scale 0 and codes 0. Results are not rounded to a 16-bit type before.
template <class Out>
struct RowOutput {
  Out* output;         // [rows, columns]
  const float* scale;  // [1], or null
  float* row_scale;    // [rows], or null
};
template <class Out>
struct Quantized {
  static constexpr bool value = false;
};
template <>
struct Quantized<int8_t> {
  static constexpr bool value = true;
  static constexpr float kMost = 127.f;
};
template <>
struct Quantized<e4m3> {
  static constexpr bool value = true;
  static constexpr float kMost = 448.f;
};
constexpr float kLeastRowScale = 1.17549435e-38f;

// Writes a row. `result(chunk, count, x)` turns a chunk of the row's values into results, in place; it is called
// twice when the scale is the row's own.
template <class Out, RowForm kForm, class Source, class Team, class F>
__device__ __forceinline__ void write_row(const RowOutput<Out>& to, int64_t row, RowValues<kForm, Source>& values,
                                          Team& team, F result) {
  const bool whole = in_chunks(values.columns);
  Out* const output = to.output + row * values.columns;
  if constexpr (!Quantized<Out>::value) {
    values.each([&](int chunk, int count, float(&x)[kChunk]) {
      result(chunk, count, x);
      write_chunk(output + int64_t(chunk) * kChunk, x, count, whole);
    });
  } else {
    constexpr bool kKept = RowValues<kForm, Source>::kKept;
    float inverse;
    const bool own_scale = to.row_scale != nullptr;
    if (own_scale) {
      float most = 0.f;
      values.each([&](int chunk, int count, float(&x)[kChunk]) {
        result(chunk, count, x);  // kept values are results from here on
#pragma unroll
        for (int i = 0; i < kChunk; i++)
          if (i < count) most = fmaxf(most, fabsf(x[i]));
      });
      most = team.max(most);
      const float scale = most / Quantized<Out>::kMost;
      const bool usable = scale >= kLeastRowScale;
      inverse = usable ? Quantized<Out>::kMost / most : 0.f;
      if (team.thread == 0) to.row_scale[row] = usable ? scale : 0.f;
    } else {
      inverse = 1.f / *to.scale;
    }
    values.each([&](int chunk, int count, float(&x)[kChunk]) {
      if (!(kKept && own_scale)) result(chunk, count, x);
#pragma unroll
      for (int i = 0; i < kChunk; i++) x[i] *= inverse;
      write_chunk(output + int64_t(chunk) * kChunk, x, count, whole);
    });
  }
}

// Goes over the rows that fall to this thread's team: body(row, team).
template <RowForm kForm, class F>
__device__ __forceinline__ void for_each_row(int64_t rows, F body) {
  constexpr bool kOneWarp = kForm == RowForm::kWarp;
  DYNAMIC_SMEM(shared);
  const int thread = int(threadIdx.x), block = int(blockDim.x);
  RowTeam<kOneWarp> team{kOneWarp ? thread % 32 : thread, kOneWarp ? 32 : block, reinterpret_cast<float*>(shared)};
  const int teams = kOneWarp ? block / 32 : 1;
  const int64_t first = int64_t(blockIdx.x) * teams + (kOneWarp ? thread / 32 : 0);
  for (int64_t row = first; row < rows; row += int64_t(gridDim.x) * teams) body(row, team);
}

}  // namespace slipway
