// Blocks: barriers, what shared memory holds at their begin, indices, and launches that CUDA refuses.
#pragma once
#include "program.hpp"

namespace {

__global__ void rotate(int* out) {
  DYNAMIC_SMEM(smem);
  STATIC_SMEM(int, extra, 4);
  int* all = reinterpret_cast<int*>(smem);
  const int t = threadIdx.x, n = int(blockDim.x);
  for (int round = 0; round < 3; round++) {
    all[t] = round * 1000 + t;
    if (t < 4) extra[t] = round;
    __syncthreads();
    out[t] = all[(t + 37) % n] + extra[t % 4] * 100000;
    __syncthreads();
  }
  out[n + t] = __syncthreads_count(t % 5 == 0);
  out[2 * n + t] = __syncthreads_or(t == 3) * 2 + __syncthreads_or(0);
  out[3 * n + t] = __syncthreads_and(t >= 0) * 2 + __syncthreads_and(t != 3);
}
void check_barriers(unsigned) {
  for (int n : {33, 96, 128}) {
    std::vector<int> out(size_t(4 * n));
    ptx::launch(rotate, dim3(1), dim3(unsigned(n)), size_t(4 * n), nullptr, out.data());
    for (int t = 0; t < n; t++) {
      expect_equal(out[size_t(t)], 202000 + (t + 37) % n, "what another thread wrote");
      expect_equal(out[size_t(n + t)], (n + 4) / 5, "__syncthreads_count");
      expect_equal(out[size_t(2 * n + t)], 2, "__syncthreads_or");
      expect_equal(out[size_t(3 * n + t)], 2, "__syncthreads_and");
    }
  }
}

__global__ void poison(float* out) {
  DYNAMIC_SMEM(smem);
  STATIC_SMEM(float, array, 32);
  auto* x = reinterpret_cast<float*>(smem);
  float* o = out + (blockIdx.x * 32 + threadIdx.x) * 2;
  o[0] = x[threadIdx.x], o[1] = array[threadIdx.x];
  x[threadIdx.x] = array[threadIdx.x] = 1;  // what the next block must not see
}
void check_poison(unsigned) {
  std::vector<float> out(3 * 64);
  ptx::launch(poison, dim3(3), dim3(32), 128, nullptr, out.data());
  for (float x : out) expect(x != x, "shared memory is not NaN at the begin of a block");
}

__global__ void count_visits(int* visits) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  visits[block * blockDim.x * blockDim.y * blockDim.z + thread]++;
}
void check_indices(unsigned) {
  std::vector<int> visits(2 * 3 * 4 * 5 * 3 * 2);
  ptx::launch(count_visits, dim3(2, 3, 4), dim3(5, 3, 2), 0, nullptr, visits.data());
  for (int v : visits) expect_equal(v, 1, "visits");
}

__global__ void nothing() {}
void check_refusals(unsigned) {
  const auto refused = [](dim3 grid, dim3 block, size_t bytes, const char* words) {
    try {
      ptx::launch(nothing, grid, block, bytes, nullptr);
    } catch (const slipway::CudaError& error) {
      expect(std::string(error.what()).find(words) != std::string::npos, error.what());
      return;
    }
    throw Wrong("a launch was not refused");
  };
  for (dim3 grid : {dim3(0), dim3(1, 0), dim3(1, 1, 0), dim3(1, 65536), dim3(1, 1, 65536)})
    refused(grid, dim3(32), 0, "invalid configuration argument");
  for (dim3 block : {dim3(0), dim3(1025), dim3(32, 33), dim3(1, 1, 65)})
    refused(dim3(1), block, 0, "invalid configuration argument");
  refused(dim3(1), dim3(32), (227 << 10) + 1, "invalid argument");
  ptx::launch(nothing, dim3(1), dim3(1024), 227 << 10, nullptr);
}

const std::vector<Check> kBlocks = {
    {"barriers", check_barriers},
    {"poison", check_poison},
    {"indices", check_indices},
    {"refusals", check_refusals},
};

}  // namespace
