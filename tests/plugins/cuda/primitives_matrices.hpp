// Matrices: ldmatrix, stmatrix, and mma.sync against a plain product.
#pragma once
#include "program.hpp"

namespace {

using namespace slipway;

// Element (r, c) of 8x8 matrix m is 64 * m + 8 * r + c.
template <int N, bool Trans>
__global__ void load_matrices(uint16_t* out, bool store) {
  DYNAMIC_SMEM(smem);
  auto* tile = reinterpret_cast<uint16_t*>(smem);
  const int lane = threadIdx.x;
  for (int i = lane; i < 64 * N; i += 32) tile[i] = uint16_t(store ? 0xffff : i);
  __syncthreads();
  uint32_t r[N];
  const uint16_t* row = tile + lane % (8 * N) * 8;
  if (store) {
    for (int i = 0; i < N; i++) {
      const int first = 64 * i + (Trans ? lane % 4 * 16 + lane / 4 : lane / 4 * 8 + lane % 4 * 2);
      r[i] = uint32_t(first) | uint32_t(first + (Trans ? 8 : 1)) << 16;
    }
    if constexpr (N == 4) ptx::stmatrix_x4<Trans>(tile + lane * 8, r);
    if constexpr (N == 2) ptx::stmatrix_x2<Trans>(tile + lane % 16 * 8, r);
    __syncthreads();
    for (int i = lane; i < 64 * N; i += 32) out[i] = tile[i];
    return;
  }
  if constexpr (N == 4) ptx::ldmatrix_x4<Trans>(r, row);
  if constexpr (N == 2) ptx::ldmatrix_x2<Trans>(r, row);
  if constexpr (N == 1) ptx::ldmatrix_x1<Trans>(r, row);
  for (int i = 0; i < N; i++)
    for (int half = 0; half < 2; half++) {
      const int a = lane / 4, b = lane % 4 * 2 + half;
      out[64 * i + (Trans ? b * 8 + a : a * 8 + b)] = uint16_t(r[i] >> 16 * half);
    }
}
template <int N, bool Trans>
void check_matrices(unsigned) {
  for (bool store : {false, true}) {
    if (store && N == 1) continue;
    std::vector<uint16_t> out(64 * N, 0xffff);
    ptx::launch(load_matrices<N, Trans>, dim3(1), dim3(32), 128 * N, nullptr, out.data(), store);
    for (int i = 0; i < 64 * N; i++) expect_equal(out[size_t(i)], i, store ? "stmatrix" : "ldmatrix");
  }
}

// The product of a 16 x K and a K x 8 matrix that lie row-major in 32-bit words of K / 8 elements each.
template <class T>
__device__ void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (sizeof(T) == 2) ptx::mma_m16n8k16<T>(d, a, b);
  else if constexpr (sizeof(T) == 1) ptx::mma_m16n8k32_e4m3(d, a, b);
  else ptx::mma_m16n8k8_tf32(d, a, b);
}
template <class T>
__device__ void multiply(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  ptx::mma_m16n8k32_s8(d, a, b);
}
// a: [16][K]; b: [8][K], the second matrix by columns; d: [16][8].
template <class T, class Sum>
__global__ void product(const T* a, const T* b, Sum* d) {
  constexpr int K = 32 / int(sizeof(T));
  const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
  const auto word = [&](const T* row, int column) {
    uint32_t r;
    memcpy(&r, row + column, 4);
    return r;
  };
  constexpr int P = 4 / int(sizeof(T));
  const uint32_t fa[4] = {word(a + g * K, t * P), word(a + (g + 8) * K, t * P), word(a + g * K, t * P + K / 2),
                          word(a + (g + 8) * K, t * P + K / 2)};
  const uint32_t fb[2] = {word(b + g * K, t * P), word(b + g * K, t * P + K / 2)};
  Sum sums[4] = {1, 2, 3, 4};
  multiply<T>(sums, fa, fb);
  for (int i = 0; i < 4; i++) d[(g + i / 2 * 8) * 8 + t * 2 + i % 2] = sums[i] - Sum(i + 1);
}
template <class T, class Sum>
void check_product(unsigned seed) {
  constexpr int K = 32 / int(sizeof(T));
  std::mt19937 generator(seed);
  std::uniform_int_distribution<int> small(-8, 8);  // exact in every format
  std::vector<T> a(16 * K), b(8 * K);
  std::vector<Sum> d(16 * 8, Sum(-1));
  for (T& x : a) x = from_float<T>(float(small(generator)));
  for (T& x : b) x = from_float<T>(float(small(generator)));
  ptx::launch(product<T, Sum>, dim3(1), dim3(32), 0, nullptr, a.data(), b.data(), d.data());
  for (int i = 0; i < 16; i++)
    for (int j = 0; j < 8; j++) {
      float want = 0;
      for (int k = 0; k < K; k++) want += to_float(a[size_t(i * K + k)]) * to_float(b[size_t(j * K + k)]);
      expect_equal(d[size_t(i * 8 + j)], want, "element " + std::to_string(i) + ", " + std::to_string(j));
    }
}

const std::vector<Check> kMatrices = {
    {"ldmatrix x1", check_matrices<1, false>},
    {"ldmatrix x1 trans", check_matrices<1, true>},
    {"ldmatrix x2, stmatrix x2", check_matrices<2, false>},
    {"ldmatrix x2, stmatrix x2 trans", check_matrices<2, true>},
    {"ldmatrix x4, stmatrix x4", check_matrices<4, false>},
    {"ldmatrix x4, stmatrix x4 trans", check_matrices<4, true>},
    {"mma half", check_product<__half, float>},
    {"mma bfloat16", check_product<__nv_bfloat16, float>},
    {"mma e4m3", check_product<e4m3, float>},
    {"mma int8", check_product<int8_t, int32_t>},
    {"mma tf32", check_product<float, float>},
};

}  // namespace
