// Wrappers of what only sm_90 has, but for wgmma, each in a kernel of its own, against its definition. Checks
// whose names begin with "fault" plant one, which must be seen.
#include <cstring>

#include "program.hpp"
#include "slipway/ptx_sm90.cuh"
#include "slipway/tensor_map.cuh"

namespace {

// ---- boxes of a tensor

enum StoreFault { kStored, kUnfenced, kUnwaited };

// A box of 8 rows of 1 head of 64 (or 32) columns, at any place, by TMA to shared memory, out to `seen` in
// order of the rows, and back with 1 added.
template <int Columns>
__global__ void box(const __grid_constant__ ptx::TensorMap map, int column, int head, int row, __half* seen,
                    int store) {
  DYNAMIC_SMEM(shared);
  uint64_t* const full = reinterpret_cast<uint64_t*>(shared + 1024);
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(full, 1);
    ptx::mbarrier_fence_init();
    ptx::mbarrier_arrive_expect(full, 16 * Columns);
    ptx::tensor_load(shared, &map, full, column, head, row);
  }
  __syncthreads();
  ptx::mbarrier_wait(full, 0);
  __half* const tile = reinterpret_cast<__half*>(shared);
  for (int i = threadIdx.x; i < 8 * Columns; i += 32) {
    const int row = i / Columns, turn = Columns == 64 ? row : row / 2;  // the swizzle, by hand
    const int at = row * Columns + ((i % Columns / 8) ^ turn) * 8 + i % 8;
    seen[i] = tile[at];
    tile[at] = slipway::from_float<__half>(slipway::to_float(seen[i]) + 1.f);
  }
  if (store != kUnfenced) ptx::fence_proxy_async();
  __syncwarp();
  if (threadIdx.x == 0) {
    ptx::tensor_store(&map, shared, column, head, row);
    ptx::bulk_commit();
    if (store != kUnwaited) ptx::bulk_wait_read<0>();
  }
}
template <int Columns>
void check_boxes(int store) {
  constexpr int size = 72, heads = 3, tokens = 13, row_stride = 256;
  for (int column : {0, Columns, 128, -8})
    for (int row : {0, 5, 10, 13, -3})
      for (int head : {0, 2, 3}) {
        const auto tensor = random_matrix<__half>(tokens, row_stride, 7);
        auto changed = tensor;
        std::vector<__half> seen(8 * Columns);
        ptx::TensorMap map;
        expect(slipway::make_tensor_map<__half>(
                   map, {changed.data(), {size, heads, tokens}, {80 * 2, row_stride * 2}, {Columns, 1, 8}}),
               "no map");
        ptx::launch(box<Columns>, dim3(1), dim3(32), 1032, nullptr, map, column, head, row, seen.data(),
                    store);
        auto want = tensor;
        for (int r = 0; r < 8; r++)
          for (int c = 0; c < Columns; c++) {
            const int x = column + c, t = row + r;
            const bool inside = x >= 0 && x < size && head < heads && t >= 0 && t < tokens;
            const size_t at = inside ? size_t(t * row_stride + head * 80 + x) : 0;
            const float value = inside ? slipway::to_float(tensor[at]) : 0.f;
            expect(slipway::to_float(seen[size_t(r * Columns + c)]) == value, "a box reads something else");
            if (inside) want[at] = slipway::from_float<__half>(value + 1.f);
          }
        expect(std::memcmp(want.data(), changed.data(), want.size() * 2) == 0, "a box writes something else");
      }
  ptx::TensorMap map;
  const std::vector<__half> some(64);
  expect(!slipway::make_tensor_map<__half>(map, {some.data(), {64, 1, 1}, {8, 16}, {64, 1, 8}}),
         "a stride of 8 bytes");
  expect(!slipway::make_tensor_map<__half>(map, {some.data() + 4, {64, 1, 1}, {16, 16}, {64, 1, 8}}),
         "a base of 8");
  expect(!slipway::make_tensor_map<__half>(map, {some.data(), {64, 1, 1}, {16, 16}, {64, 1, 257}}),
         "a box of 257");
  expect(!slipway::make_tensor_map<__half>(map, {some.data(), {64, 1, 1}, {16, 16}, {16, 1, 8}}),
         "a box of 32 bytes");
}

// ---- a ring of two stages

enum Fault {
  kNone,
  kNeverFreed,
  kFreedEarly,
  kNotWaited,
  kWrongParity,
  kTooManyBytes,
  kTooFewBytes,
  kUninitialised,
  kNotPublished
};

// One producer thread copies tiles; 96 consumers add them up. Tiles are read with an offset of one thread.
__global__ void ring(const float* in, float* out, int tiles, int fault) {
  DYNAMIC_SMEM(shared);
  constexpr int tile = 96;
  float* const stage = reinterpret_cast<float*>(shared);
  uint64_t* const full = reinterpret_cast<uint64_t*>(stage + 2 * tile);
  uint64_t* const empty = full + 2;
  if (threadIdx.x == 0 && fault != kUninitialised) {
    for (int s = 0; s < 2; s++) ptx::mbarrier_init(full + s, 1), ptx::mbarrier_init(empty + s, tile);
    if (fault != kNotPublished) ptx::mbarrier_fence_init();
  }
  __syncthreads();
  if (threadIdx.x >= tile) {
    if (threadIdx.x != tile) return;
    for (int i = 0; i < tiles; i++) {
      ptx::mbarrier_wait(empty + i % 2, fault == kWrongParity ? i / 2 & 1 : (i / 2 & 1) ^ 1);
      ptx::mbarrier_arrive_expect(full + i % 2, tile * 4 + (fault == kTooManyBytes  ? 16
                                                            : fault == kTooFewBytes ? -16
                                                                                    : 0));
      ptx::bulk_load(stage + i % 2 * tile, in + i * tile, tile * 4, full + i % 2);
    }
    return;
  }
  float sum = 0;
  for (int i = 0; i < tiles; i++) {
    if (fault != kNotWaited) ptx::mbarrier_wait(full + i % 2, i / 2 & 1);
    if (fault == kFreedEarly) ptx::mbarrier_arrive(empty + i % 2);
    sum += stage[i % 2 * tile + (threadIdx.x + 1) % tile];
    if (fault != kFreedEarly && fault != kNeverFreed) ptx::mbarrier_arrive(empty + i % 2);
  }
  out[threadIdx.x] = sum;
}
void check_ring(int fault) {
  constexpr int tiles = 9, tile = 96;
  std::vector<float> in(tiles * tile), out(tile, NAN);
  for (size_t i = 0; i < in.size(); i++) in[i] = float(i % 101);
  ptx::launch(ring, dim3(1), dim3(128), 2 * tile * 4 + 32, nullptr, in.data(), out.data(), tiles, fault);
  for (int t = 0; t < tile; t++) {
    float want = 0;
    for (int i = 0; i < tiles; i++) want += in[size_t(i * tile + (t + 1) % tile)];
    expect(out[size_t(t)] == want, "a sum is wrong");
  }
}

// ---- named barriers: two warps take turns, a third hands in

__global__ void turns(int* order, int rounds, bool forget) {
  DYNAMIC_SMEM(shared);
  int* const count = reinterpret_cast<int*>(shared);
  const int warp = threadIdx.x / 32;
  if (threadIdx.x == 0) *count = 0;
  __syncthreads();
  if (warp == 1) ptx::named_barrier_arrive(1, 64);  // the first turn is warp 0's
  for (int i = 0; i < rounds; i++) {
    ptx::named_barrier_wait(1 + warp, 64);
    if (threadIdx.x % 32 == 0) order[(*count)++] = warp;
    __syncwarp();
    if (!forget || i < rounds - 1 || warp == 0) ptx::named_barrier_arrive(2 - warp, 64);
  }
  if (warp == 0) ptx::named_barrier_wait(1, 64);
}
void check_turns(bool forget) {
  std::vector<int> order(12, -1);
  ptx::launch(turns, dim3(1), dim3(64), 16, nullptr, order.data(), 6, forget);
  for (int i = 0; i < 12; i++) expect(order[size_t(i)] == i % 2, "turn " + std::to_string(i));
}

__global__ void elections(int* out) {
  const bool first = ptx::elect_one(), second = ptx::elect_one();
  if (first) atomicAdd(out, 1);
  if (first != second) atomicAdd(out + 1, 1);
}
void check_elections() {
  int out[2] = {0, 0};
  ptx::launch(elections, dim3(2), dim3(96), 16, nullptr, &out[0]);
  expect(out[0] == 6 && out[1] == 0, "not one lane a warp, or not the same one");
}

}  // namespace

int main(int argc, char** argv) {
  return run_checks(argc, argv,
                    {
                        {"tensor boxes", [](unsigned) { check_boxes<64>(kStored); }},
                        {"tensor boxes of 64 bytes", [](unsigned) { check_boxes<32>(kStored); }},
                        {"fault bulk store: no proxy fence", [](unsigned) { check_boxes<64>(kUnfenced); }},
                        {"fault bulk store: not waited for", [](unsigned) { check_boxes<64>(kUnwaited); }},
                        {"named barriers", [](unsigned) { check_turns(false); }},
                        {"elect", [](unsigned) { check_elections(); }},
                        {"mbarrier ring", [](unsigned) { check_ring(kNone); }},
                        {"fault ring: never freed", [](unsigned) { check_ring(kNeverFreed); }},
                        {"fault ring: freed early", [](unsigned) { check_ring(kFreedEarly); }},
                        {"fault ring: not waited for", [](unsigned) { check_ring(kNotWaited); }},
                        {"fault ring: wrong parity", [](unsigned) { check_ring(kWrongParity); }},
                        {"fault ring: too many bytes", [](unsigned) { check_ring(kTooManyBytes); }},
                        {"fault ring: too few bytes", [](unsigned) { check_ring(kTooFewBytes); }},
                        {"fault ring: uninitialised", [](unsigned) { check_ring(kUninitialised); }},
                        {"fault ring: not published", [](unsigned) { check_ring(kNotPublished); }},
                        {"fault turns: one is forgotten", [](unsigned) { check_turns(true); }},
                    });
}
