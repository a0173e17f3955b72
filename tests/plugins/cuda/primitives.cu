// What kernels use of PTX and of CUDA's intrinsics, against their definitions, on the emulator.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "program.hpp"

using namespace slipway;

namespace {

constexpr uint32_t kAll = 0xffffffffu;

// ---- matrices -----------------------------------------------------------------------------------------
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

// ---- warps --------------------------------------------------------------------------------------------
__global__ void exchange(int* out, int width, int n) {
  const int lane = threadIdx.x, v = 100 + lane;
  int* o = out + lane * 5;
  o[0] = __shfl_sync(kAll, v, n, width);
  o[1] = __shfl_xor_sync(kAll, v, n, width);
  o[2] = __shfl_down_sync(kAll, v, unsigned(n), width);
  o[3] = __shfl_up_sync(kAll, v, unsigned(n), width);
  // Odd lanes alone, in a branch of theirs.
  o[4] = lane % 2 ? __shfl_sync(0xaaaaaaaau, v, lane ^ 2) : -1;
}
void check_shuffles(unsigned) {
  for (int width : {4, 8, 32})
    for (int n : {0, 1, 3, 5}) {
      std::vector<int> out(32 * 5);
      ptx::launch(exchange, dim3(1), dim3(32), 0, nullptr, out.data(), width, n);
      for (int lane = 0; lane < 32; lane++) {
        const int first = lane / width * width, end = first + width, x = lane ^ n;
        const int want[5] = {first + n % width, x < end ? x : lane, lane + n < end ? lane + n : lane,
                             lane - n >= first ? lane - n : lane, lane ^ 2};
        for (int i = 0; i < 5; i++)
          if (i < 4 || lane % 2) expect_equal(out[size_t(lane * 5 + i)], 100 + want[i], "shuffle " + std::to_string(i));
      }
    }
}

__global__ void vote(uint32_t* out) {
  const uint32_t lane = threadIdx.x;
  const int v = int(lane * 7 % 5) - 2;
  int same = -1;
  uint32_t* o = out + lane * 16;
  o[0] = __ballot_sync(kAll, lane % 3 == 0);
  o[1] = uint32_t(__any_sync(kAll, lane == 31)), o[2] = uint32_t(__any_sync(kAll, 0));
  o[3] = uint32_t(__all_sync(kAll, lane < 32)), o[4] = uint32_t(__all_sync(kAll, lane < 31));
  o[5] = __match_any_sync(kAll, v);
  o[6] = __match_all_sync(kAll, 5, &same), o[7] = uint32_t(same);
  o[8] = __match_all_sync(kAll, v, &same), o[9] = uint32_t(same);
  o[10] = uint32_t(__reduce_add_sync(kAll, v)), o[11] = uint32_t(__reduce_min_sync(kAll, v));
  o[12] = uint32_t(__reduce_max_sync(kAll, v)), o[13] = __reduce_xor_sync(kAll, lane * lane);
  o[14] = lane < 8 ? __reduce_or_sync(0xffu, 1u << lane) : 0;
  o[15] = lane < 8 ? __ballot_sync(0xffu, lane % 2) : __activemask();
}
void check_votes(unsigned) {
  std::vector<uint32_t> out(32 * 16);
  ptx::launch(vote, dim3(1), dim3(32), 0, nullptr, out.data());
  uint32_t thirds = 0, squares = 0;
  int sum = 0;
  for (uint32_t i = 0; i < 32; i++) {
    if (i % 3 == 0) thirds |= 1u << i;
    squares ^= i * i, sum += int(i * 7 % 5) - 2;
  }
  for (uint32_t lane = 0; lane < 32; lane++) {
    uint32_t like = 0;
    for (uint32_t i = 0; i < 32; i++)
      if (i * 7 % 5 == lane * 7 % 5) like |= 1u << i;
    const uint32_t want[16] = {thirds, 1, 0, 1, 0, like, kAll, 1, 0, 0, uint32_t(sum), uint32_t(-2), 2, squares,
                               lane < 8 ? 0xffu : 0, lane < 8 ? 0xaau : 1u << lane};
    for (int i = 0; i < 16; i++) expect_equal(out[lane * 16 + uint32_t(i)], want[i], "vote " + std::to_string(i));
  }
}

// Each lane reads what its neighbour wrote before __syncwarp.
__global__ void neighbours(int* out) {
  DYNAMIC_SMEM(smem);
  int* row = reinterpret_cast<int*>(smem) + threadIdx.x / 32 * 32;
  const int lane = threadIdx.x % 32;
  for (int round = 0; round < 4; round++) {
    row[lane] = round * 100 + lane;
    __syncwarp();
    out[threadIdx.x] = row[(lane + 1) % 32];
    __syncwarp();
  }
}
void check_syncwarp(unsigned) {
  std::vector<int> out(64);
  ptx::launch(neighbours, dim3(1), dim3(64), 256, nullptr, out.data());
  for (int i = 0; i < 64; i++) expect_equal(out[size_t(i)], 300 + (i % 32 + 1) % 32, "neighbour");
}

// ---- blocks -------------------------------------------------------------------------------------------
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

// ---- memory -------------------------------------------------------------------------------------------
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
  expect(u[0] == 2 * n && u[1] == kAll && u[2] == 0xffff0000u && u[3] == 0 && u[4] == n % 10, "unsigned atomics");
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

// ---- launches -----------------------------------------------------------------------------------------
__global__ void nothing() {}
void check_refusals(unsigned) {
  const auto refused = [](dim3 grid, dim3 block, size_t bytes, const char* words) {
    try {
      ptx::launch(nothing, grid, block, bytes, nullptr);
    } catch (const CudaError& error) {
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

}  // namespace

int main(int argc, char** argv) {
  return run_checks(argc, argv,
                    {{"ldmatrix x1", check_matrices<1, false>},
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
                     {"shuffles", check_shuffles},
                     {"votes", check_votes},
                     {"syncwarp", check_syncwarp},
                     {"barriers", check_barriers},
                     {"poison", check_poison},
                     {"indices", check_indices},
                     {"copies", check_copies},
                     {"atomics", check_atomics},
                     {"fences", [](unsigned) { check_fences(true, true); }},
                     {"overlap", [](unsigned) { check_overlap(true); }},
                     {"refusals", check_refusals},
                     // Found by TSan alone, and the end of the program: last.
                     {"no fence before", [](unsigned) { check_fences(false, true); }},
                     {"no fence after", [](unsigned) { check_fences(true, false); }},
                     {"no wait for the kernel before", [](unsigned) { check_overlap(false); }}});
}
