// Memory between threads: cp.async, atomics, fences, kernels that overlap.
#pragma once
#include <algorithm>
#include <numeric>

#include "program.hpp"

namespace {

// out[0]: before the wait; out[1], out[2]: after the first and the second group's; out[3]: not valid.
template <int Bytes>
__global__ void copy_async(const float* from, float* out) {
  DYNAMIC_SMEM(smem);
  auto* x = reinterpret_cast<float*>(smem) + threadIdx.x * 16;
  const auto copy = [&](float* to, const float* source, bool valid) {
    if constexpr (Bytes == 16) ptx::cp_async_16(to, source, valid);
    else ptx::cp_async_small<Bytes>(to, source, valid);
  };
  float* o = out + threadIdx.x * 5;
  x[0] = 5;
  copy(x, from, true);
  ptx::cp_async_commit();
  copy(x + 4, from + 4, true);
  copy(x + 8, from, false);
  ptx::cp_async_commit();
  o[0] = x[0];
  ptx::cp_async_wait<1>();
  o[1] = x[Bytes / 4 - 1], o[2] = x[4];
  ptx::cp_async_wait<0>();
  o[3] = x[4 + Bytes / 4 - 1], o[4] = x[8];
}
void check_copies(unsigned) {
  alignas(16) float from[8];
  std::iota(from, from + 8, 1.0f);
  const auto check = [&](auto kernel, int bytes) {
    std::vector<float> out(32 * 5);
    ptx::launch(kernel, dim3(1), dim3(32), 32 * 64, nullptr, from, out.data());
    for (int t = 0; t < 32; t++) {
      const float* o = out.data() + 5 * t;
      expect(o[0] != o[0] && o[2] != o[2], "a copy is there before it was waited for");
      expect_equal(o[1], from[bytes / 4 - 1], "the first copy");
      expect_equal(o[3], from[4 + bytes / 4 - 1], "the second copy");
      expect_equal(o[4], 0, "a copy that is not valid");
    }
  };
  check(copy_async<4>, 4), check(copy_async<8>, 8), check(copy_async<16>, 16);
}

__global__ void count_atomically(int* i, unsigned* u, unsigned long long* l, float* f) {
  const int t = int(blockIdx.x * blockDim.x + threadIdx.x);
  atomicAdd(&i[0], t), atomicSub(&i[1], 1), atomicMax(&i[2], t), atomicMin(&i[3], -t);
  atomicAdd(&u[0], 2u), atomicOr(&u[1], 1u << t % 32), atomicAnd(&u[2], ~(1u << t % 16)), atomicXor(&u[3], unsigned(t));
  atomicInc(&u[4], 9u);
  atomicAdd(&l[0], 1ull << 33), atomicMax(&l[1], (unsigned long long)t << 40);
  atomicAdd(f, 0.5f);
  int old = 0, seen;  // a guess
  do seen = old, old = atomicCAS(&i[4], seen, seen + 3);
  while (old != seen);
  i[8 + t] = atomicExch(&i[5], t);
}
void check_atomics(unsigned) {
  constexpr int n = 128;
  std::vector<int> i(8 + n);
  std::vector<unsigned> u = {0, 0, ~0u, 0, 0};
  std::vector<unsigned long long> l(2);
  float f = 0;
  i[5] = -1;
  ptx::launch(count_atomically, dim3(1), dim3(n), 0, nullptr, i.data(), u.data(), l.data(), &f);
  const int want[5] = {n * (n - 1) / 2, -n, n - 1, 1 - n, 3 * n};
  for (int k = 0; k < 5; k++) expect_equal(i[size_t(k)], want[k], "atomic " + std::to_string(k));
  expect(u[0] == 2 * n && u[1] == ~0u && u[2] == 0xffff0000u && u[3] == 0 && u[4] == n % 10, "unsigned atomics");
  expect(l[0] == (unsigned long long)n << 33 && l[1] == (n - 1ull) << 40 && f == n / 2, "64-bit and float atomics");
  std::vector<int> exchanged(i.begin() + 8, i.end());
  exchanged.push_back(i[5]);
  std::sort(exchanged.begin(), exchanged.end());
  for (int k = 0; k <= n; k++) expect_equal(exchanged[size_t(k)], k - 1, "exchanged");
}

// The last block to finish adds up what all have written (CUDA C++ Programming Guide, "Memory fence functions").
__global__ void add_up(const int* in, int* partial, unsigned* done, int* out, bool fence_before, bool fence_after) {
  STATIC_SMEM(int, is_last, 1);
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = in[blockIdx.x];
    if (fence_before) __threadfence();
    is_last[0] = atomicAdd(done, 1u) == gridDim.x - 1;
    if (fence_after) __threadfence();
  }
  __syncthreads();
  if (is_last[0] && threadIdx.x == 1) {
    int sum = 0;
    for (unsigned i = 0; i < gridDim.x; i++) sum += partial[i];
    *out = sum;
  }
}
void check_fences(bool before, bool after) {
  std::vector<int> in(7), partial(7);
  std::iota(in.begin(), in.end(), 1);
  unsigned done = 0;
  int out = 0;
  ptx::launch(add_up, dim3(7), dim3(32), 0, nullptr, in.data(), partial.data(), &done, &out, before, after);
  expect_equal(out, 28, "sum");
}

// What one kernel writes, the next reads, which may have begun before it ended.
__global__ void fill(int* x) { x[blockIdx.x * 32 + threadIdx.x] = int(threadIdx.x); }
__global__ void sum_of_neighbours(const int* x, int* out, bool wait) {
  if (wait) ptx::previous_kernel_wait();
  const int i = int(blockIdx.x * 32 + threadIdx.x);
  out[i] = x[i] + x[(i + 33) % 96];
}
void check_overlap(bool wait) {
  std::vector<int> x(96), out(96);
  for (int round = 0; round < 2; round++) {
    ptx::launch(fill, dim3(3), dim3(32), 0, nullptr, x.data());
    ptx::launch_overlapped(sum_of_neighbours, dim3(3), dim3(32), 0, nullptr, x.data(), out.data(), wait);
  }
  for (int i = 0; i < 96; i++) expect_equal(out[size_t(i)], i % 32 + (i + 1) % 32, "sum of neighbours");
}

const std::vector<Check> kMemory = {
    {"copies", check_copies},
    {"atomics", check_atomics},
    {"fences", [](unsigned) { check_fences(true, true); }},
    {"overlap", [](unsigned) { check_overlap(true); }},
};

// Found by TSan alone, and the end of the program.
const std::vector<Check> kRaces = {
    {"no fence before", [](unsigned) { check_fences(false, true); }},
    {"no fence after", [](unsigned) { check_fences(true, false); }},
    {"no wait for the kernel before", [](unsigned) { check_overlap(false); }},
};

}  // namespace
