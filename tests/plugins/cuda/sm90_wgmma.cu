// wgmma, by descriptors and registers, against a plain matrix product; and what goes wrong around one. Checks
// whose names begin with "fault" plant something, which must be seen.
#include <cmath>
#include <cstring>

#include "program.hpp"
#include "slipway/ptx_wgmma.cuh"

using slipway::e4m3;

namespace {

// A map of a matrix in boxes of one span of the swizzle. make_tensor_map makes some of three axes alone; the
// emulator's struct takes any.
template <class T>
ptx::TensorMap map_of(const T* m, int rows, int columns, int box_rows, int box_columns, int swizzle) {
  return {reinterpret_cast<unsigned char*>(const_cast<T*>(m)),
          2,
          int(sizeof(T)),
          {uint64_t(columns), uint64_t(rows)},
          {0, columns * sizeof(T)},
          {uint32_t(box_columns), uint32_t(box_rows)},
          swizzle};
}

// d = A B + A B through TMA, with A of 64 x K and K-major. B: N x K ("K-major") or K x N; panels of `span`
// bytes.
template <class T, int N, int K, bool TransposedB, bool AInRegisters, int Span>
__global__ void product(const __grid_constant__ ptx::TensorMap a_map,
                        const __grid_constant__ ptx::TensorMap b_map, const T* a, float* d) {
  DYNAMIC_SMEM(shared);
  constexpr int bytes = int(sizeof(T)), columns = Span / bytes;  // of a panel
  constexpr int a_panel = 64 * Span, b_rows = TransposedB ? K : N, b_panel = b_rows * Span;
  constexpr int a_panels = K / columns, b_panels = (TransposedB ? N : K) / columns;
  constexpr ptx::Swizzle swizzle = Span == 128  ? ptx::Swizzle::k128
                                   : Span == 64 ? ptx::Swizzle::k64
                                                : ptx::Swizzle::k32;
  unsigned char* const a_tile = shared;
  unsigned char* const b_tile = shared + a_panels * a_panel;
  uint64_t* const full = reinterpret_cast<uint64_t*>(b_tile + b_panels * b_panel);
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(full, 1);
    ptx::mbarrier_fence_init();
    ptx::mbarrier_arrive_expect(full, a_panels * a_panel + b_panels * b_panel);
    for (int i = 0; i < a_panels; i++) ptx::tensor_load(a_tile + i * a_panel, &a_map, full, i * columns, 0);
    for (int i = 0; i < b_panels; i++) ptx::tensor_load(b_tile + i * b_panel, &b_map, full, i * columns, 0);
  }
  __syncthreads();
  ptx::mbarrier_wait(full, 0);
  const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4;
  const uint64_t a_at = ptx::matrix_descriptor(a_tile, 16, 8 * Span, swizzle);
  const uint64_t b_at = ptx::matrix_descriptor(b_tile, TransposedB ? b_panel : 16, 8 * Span, swizzle);
  constexpr int steps = K * bytes / 32, per_panel = Span / 32;
  uint32_t fragments[steps][4];
  for (int k = 0; k < steps; k++)
    for (int i = 0; i < 4; i++) {
      const T* from =
          a + (row + i % 2 * 8) * K + k * 32 / bytes + lane % 4 * (4 / bytes) + i / 2 * (16 / bytes);
      uint32_t word = 0;
      for (int j = 0; j < 4 / bytes; j++) {
        T x = from[j];
        uint16_t bits = 0;
        std::memcpy(&bits, &x, sizeof x);
        word |= uint32_t(bits) << 8 * bytes * j;
      }
      fragments[k][i] = word;
    }
  float sum[N / 8][4];
  ptx::wgmma_fence();
  for (int repeat = 0; repeat < 2; repeat++)
    for (int k = 0; k < steps; k++) {
      const uint64_t b_step = TransposedB ? ptx::advanced(b_at, k * 16 * Span)
                                          : ptx::advanced(b_at, k / per_panel * b_panel + k % per_panel * 32);
      if constexpr (AInRegisters)
        ptx::wgmma<T, N, TransposedB>(sum, fragments[k], b_step, repeat + k > 0);
      else
        ptx::wgmma<T, N, TransposedB>(sum, ptx::advanced(a_at, k / per_panel * a_panel + k % per_panel * 32),
                                      b_step, repeat + k > 0);
    }
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>();
  ptx::hold_registers(sum);
  for (int n = 0; n < N / 8; n++)
    for (int i = 0; i < 4; i++) d[(row + i / 2 * 8) * N + n * 8 + lane % 4 * 2 + i % 2] = sum[n][i];
}

template <class T, int N, int K, bool TransposedB, bool AInRegisters, int Span>
void check_product(unsigned seed) {
  const auto a = random_matrix<T>(64, K, seed),
             b = random_matrix<T>(TransposedB ? K : N, TransposedB ? N : K, seed + 1);
  std::vector<float> d(64 * N, NAN);
  constexpr int columns = Span / int(sizeof(T));
  const auto a_map = map_of(a.data(), 64, K, 64, columns, Span);
  const auto b_map =
      TransposedB ? map_of(b.data(), K, N, K, columns, Span) : map_of(b.data(), N, K, N, columns, Span);
  const size_t bytes = size_t(64 + N) * K * sizeof(T) + 8;
  ptx::launch(product<T, N, K, TransposedB, AInRegisters, Span>, dim3(1), dim3(128), bytes, nullptr, a_map,
              b_map, a.data(), d.data());
  for (int i = 0; i < 64; i++)
    for (int j = 0; j < N; j++) {
      double want = 0;
      for (int k = 0; k < K; k++)
        want += 2. * double(slipway::to_float(a[size_t(i * K + k)])) *
                double(slipway::to_float(b[size_t(TransposedB ? k * N + j : j * K + k)]));
      expect(std::fabs(double(d[size_t(i * N + j)]) - want) < 1e-3 * K,
             "element " + std::to_string(i) + "," + std::to_string(j) + " is " +
                 std::to_string(d[size_t(i * N + j)]) + ", not " + std::to_string(want));
    }
}
template <class T, int N, bool TransposedB>
void check_products(unsigned seed) {
  check_product<T, N, 128, TransposedB, false, 128>(seed);
  check_product<T, N, 64 * (2 / int(sizeof(T))), TransposedB, true, 128>(seed + 1);
}

template <int Span>
void check_narrow(unsigned seed) {
  check_product<__half, 64, 64, false, false, Span>(seed),
      check_product<__half, 64, 64, true, true, Span>(seed);
  check_product<e4m3, 128, 64, false, false, Span>(seed);
}

// ---- what goes wrong around one product

enum Misuse {
  kRight,
  kNoFence,
  kNoProxyFence,
  kReadEarly,
  kWriteEarly,
  kOverwritten,
  kNotCommitted,
  kNoWait,
  kOtherDescriptor,
  kWrongStart,
  kARewritten,
  kHalfTheRegisters,
  kTooManyRegisters,
  kHalfABarrier
};

__global__ void misuse(float* d, int how) {
  DYNAMIC_SMEM(shared);
  __half* const tile = reinterpret_cast<__half*>(shared);  // A and B: 64 rows of 64, all 1
  for (int i = threadIdx.x; i < 64 * 64; i += 128) tile[i] = slipway::from_float<__half>(1.f);
  if (how != kNoProxyFence) ptx::fence_proxy_async();
  __syncthreads();
  if (how == kTooManyRegisters) ptx::registers_increase<256>();
  if (how == kHalfABarrier && threadIdx.x < 64) ptx::named_barrier_arrive(3, 128);
  if (how == kHalfTheRegisters && threadIdx.x < 64) ptx::registers_increase<160>();
  float sum[8][4], early = 0;
  uint32_t a[4] = {0x3c003c00, 0x3c003c00, 0x3c003c00, 0x3c003c00};
  const uint64_t b =
      ptx::matrix_descriptor(shared + (how == kWrongStart ? 32 * 1024 : 0), 16, 1024, ptx::Swizzle::k128);
  if (how != kNoFence) ptx::wgmma_fence();
  for (int k = 0; k < 4; k++)
    ptx::wgmma<__half, 64, false>(
        sum, a, ptx::advanced(b, 32 * (how == kOtherDescriptor && threadIdx.x == 77 ? 0 : k)), k > 0);
  if (how != kNotCommitted) ptx::wgmma_commit();
  if (how == kReadEarly) early = sum[0][0];
  if (how == kWriteEarly) sum[3][2] = 0;
  if (how == kARewritten) a[1] = 0;
  if (how == kOverwritten) tile[threadIdx.x] = slipway::from_float<__half>(2.f), ptx::fence_proxy_async();
  if (how != kNoWait) ptx::wgmma_wait<0>();
  ptx::hold_registers(sum);
  for (int n = 0; n < 8; n++)
    for (int i = 0; i < 4; i++) d[(threadIdx.x % 128 * 8 + n) * 4 + i] = sum[n][i] + 0 * early;
}
void check_misuse(int how) {
  std::vector<float> d(128 * 32, NAN);
  ptx::launch(misuse, dim3(1), dim3(how == kTooManyRegisters ? 384 : 128), 64 * 128, nullptr, d.data(), how);
  for (float x : d) expect(x == 64.f, "a product is wrong");
}

}  // namespace

int main(int argc, char** argv) {
  return run_checks(
      argc, argv,
      {
          {"wgmma half 64", check_products<__half, 64, false>},
          {"wgmma half 64 transposed", check_products<__half, 64, true>},
          {"wgmma bfloat16 80", check_products<__nv_bfloat16, 80, false>},
          {"wgmma half 128", check_products<__half, 128, false>},
          {"wgmma bfloat16 128 transposed", check_products<__nv_bfloat16, 128, true>},
          {"wgmma half 96", check_products<__half, 96, false>},
          {"wgmma half 256 transposed", check_products<__half, 256, true>},
          {"wgmma e4m3 64", check_products<e4m3, 64, false>},
          {"wgmma e4m3 128", check_products<e4m3, 128, false>},
          {"wgmma e4m3 160", check_products<e4m3, 160, false>},
          {"wgmma e4m3 256", check_products<e4m3, 256, false>},
          {"wgmma 64-byte swizzle", check_narrow<64>},
          {"wgmma 32-byte swizzle", check_narrow<32>},
          {"wgmma order", [](unsigned) { check_misuse(kRight); }},
          {"fault wgmma: no fence", [](unsigned) { check_misuse(kNoFence); }},
          {"fault wgmma: no proxy fence", [](unsigned) { check_misuse(kNoProxyFence); }},
          {"fault wgmma: read early", [](unsigned) { check_misuse(kReadEarly); }},
          {"fault wgmma: written early", [](unsigned) { check_misuse(kWriteEarly); }},
          {"fault wgmma: operand overwritten", [](unsigned) { check_misuse(kOverwritten); }},
          {"fault wgmma: not committed", [](unsigned) { check_misuse(kNotCommitted); }},
          {"fault wgmma: not waited for", [](unsigned) { check_misuse(kNoWait); }},
          {"fault wgmma: threads differ", [](unsigned) { check_misuse(kOtherDescriptor); }},
          {"fault wgmma: beyond shared memory", [](unsigned) { check_misuse(kWrongStart); }},
          {"fault wgmma: A rewritten", [](unsigned) { check_misuse(kARewritten); }},
          {"fault setmaxnreg: half a warpgroup", [](unsigned) { check_misuse(kHalfTheRegisters); }},
          {"fault setmaxnreg: too many registers", [](unsigned) { check_misuse(kTooManyRegisters); }},
          {"fault named barrier: left half full", [](unsigned) { check_misuse(kHalfABarrier); }},
      });
}
