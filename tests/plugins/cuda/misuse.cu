// Kernels that are wrong in one way each, which the emulator or a sanitizer must see. A check that ends with "ok" saw
// nothing.
#include "program.hpp"

namespace {

constexpr uint32_t kAll = 0xffffffffu;

// ---- synchronisation -----------------------------------------------------------------------------------
enum Barrier { kPresent, kMissing, kHalf, kTwoPlaces, kEarlyEnd };
__global__ void pass_on(int* out, Barrier barrier) {
  DYNAMIC_SMEM(smem);
  int* x = reinterpret_cast<int*>(smem);
  const int t = threadIdx.x;
  x[t] = t;
  if (barrier == kEarlyEnd && t >= 32) return;
  if (barrier == kTwoPlaces && t >= 32) {
    __syncthreads();
  } else if (barrier != kMissing && (barrier != kHalf || t < 32)) {
    __syncthreads();
  }
  out[t] = barrier == kPresent || barrier == kMissing ? x[(t + 33) % 64] : 0;
}
void check_barrier(Barrier barrier) {
  std::vector<int> out(64);
  ptx::launch(pass_on, dim3(1), dim3(64), 256, nullptr, out.data(), barrier);
  for (int t = 0; t < 64; t++)
    if (barrier == kPresent) expect_equal(out[size_t(t)], (t + 33) % 64, "what another thread wrote");
}

__global__ void read_neighbour(int* out) {
  DYNAMIC_SMEM(smem);
  int* x = reinterpret_cast<int*>(smem);
  x[threadIdx.x] = int(threadIdx.x);
  out[threadIdx.x] = x[threadIdx.x ^ 1];  // no __syncwarp between
}
__global__ void write_one_place(int* out, bool with_barriers) {
  if (with_barriers) __syncthreads();
  if (threadIdx.x == 0) *out = int(blockIdx.x);
  if (with_barriers) __syncthreads();
}
__global__ void wait_for(const int* flag) {
  while (*reinterpret_cast<const volatile int*>(flag) == 0) __nanosleep(100);
}

// ---- warps ---------------------------------------------------------------------------------------------
enum Meeting { kOtherOperation, kOtherMask, kNotInMask, kBeyondMask, kLaneGone, kPartOfMma };
__global__ void meet(int* out, Meeting meeting) {
  const int lane = threadIdx.x;
  int v = lane;
  switch (meeting) {
    case kOtherOperation:
      if (lane < 16) v = __shfl_xor_sync(kAll, v, 1);
      else v = int(__ballot_sync(kAll, 1));
      break;
    case kOtherMask: v = __shfl_xor_sync(lane < 16 ? kAll : 0xffff0000u, v, 1); break;
    case kNotInMask: v = __shfl_xor_sync(0x0000ffffu, v, 1); break;
    case kBeyondMask:
      if (lane < 16) v = __shfl_sync(0x0000ffffu, v, lane + 16);
      break;
    case kLaneGone:
      if (lane == 7) return;
      v = __shfl_xor_sync(kAll, v, 1);
      break;
    case kPartOfMma: {
      float d[4] = {};
      if (lane != 3) ptx::mma_m16n8k16<__half>(d, {0, 0, 0, 0}, {0, 0});
      v = int(d[0]);
      break;
    }
  }
  out[lane] = v;
}
void check_meeting(Meeting meeting) {
  std::vector<int> out(32);
  ptx::launch(meet, dim3(1), dim3(32), 0, nullptr, out.data(), meeting);
}

// ---- shared memory -------------------------------------------------------------------------------------
enum Access {
  kBehindDynamic,
  kBeforeDynamic,
  kBehindStatic,
  kMisaligned,
  kMatrixMisaligned,
  kMatrixOutside,
  kTooLarge
};
__global__ void touch(float* out, Access access, int n) {
  DYNAMIC_SMEM(smem);
  STATIC_SMEM(float, array, 8);
  auto* x = reinterpret_cast<float*>(smem);
  uint32_t r[4] = {};
  switch (access) {
    case kBehindDynamic: x[n] = 1; break;
    case kBeforeDynamic: out[0] = x[-1]; break;
    case kBehindStatic: array[8 + n - n] = 1; break;
    case kMisaligned: *reinterpret_cast<float4*>(x + 1) = {1, 2, 3, 4}; break;
    case kMatrixMisaligned: ptx::ldmatrix_x4<false>(r, x + 1); break;
    case kMatrixOutside: ptx::ldmatrix_x4<false>(r, x + n - 4 + threadIdx.x / 31); break;
    case kTooLarge: {
      STATIC_SMEM(float, large, 13000);
      large[0] = 1;
      break;
    }
  }
  out[0] = float(r[0]);
}
void check_access(Access access) {
  std::vector<float> out(1);
  ptx::launch(touch, dim3(1), dim3(32), 512, nullptr, out.data(), access, 128);
}

// ---- copies --------------------------------------------------------------------------------------------
enum Copies { kNoWait, kGroupShort, kNoBarrier, kUncommitted, kTwice, kCopyMisaligned, kNotShared, kSourceEnds };
__global__ void copy(const float* from, float* out, Copies fault) {
  DYNAMIC_SMEM(smem);
  auto* x = reinterpret_cast<float*>(smem);
  const int t = threadIdx.x;
  ptx::cp_async_16(fault == kNotShared ? out + 4 * t : x + 4 * t + (fault == kCopyMisaligned), from + 4 * t);
  if (fault == kTwice) ptx::cp_async_16(x + 4 * t, from);
  if (fault != kUncommitted) ptx::cp_async_commit();
  if (fault == kGroupShort) ptx::cp_async_wait<1>();
  else if (fault != kNoWait) ptx::cp_async_wait<0>();
  if (fault != kNoBarrier) __syncthreads();
  for (int i = 0; i < 4; i++) out[4 * t + i] = x[(4 * t + i + 4) % 128];
}
void check_copy(Copies fault) {
  std::vector<float> from(fault == kSourceEnds ? 127 : 128), out(128);
  for (size_t i = 0; i < from.size(); i++) from[i] = float(i);
  ptx::launch(copy, dim3(1), dim3(32), 512, nullptr, from.data(), out.data(), fault);
  for (int i = 0; i < 128; i++) expect_equal(out[size_t(i)], float((i + 4) % 128), "copied");
}

__global__ void doubt(int index) { ptx::device_check(index < 5, "index is beyond the table"); }

}  // namespace

int main(int argc, char** argv) {
  int place = 0;
  const auto launch1 = [](auto kernel, unsigned grid, auto... arguments) {
    ptx::launch(kernel, dim3(grid), dim3(32), 128, nullptr, arguments...);
  };
  std::vector<int> out(32);
  return run_checks(argc, argv,
                    {{"none", [](unsigned) { check_barrier(kPresent); }},
                     {"no barrier", [](unsigned) { check_barrier(kMissing); }},
                     {"barrier of half the block", [](unsigned) { check_barrier(kHalf); }},
                     {"barrier in two places", [](unsigned) { check_barrier(kTwoPlaces); }},
                     {"threads end before the barrier", [](unsigned) { check_barrier(kEarlyEnd); }},
                     {"no syncwarp", [&](unsigned) { launch1(read_neighbour, 1, out.data()); }},
                     {"blocks write one place", [&](unsigned) { launch1(write_one_place, 3, &place, false); }},
                     {"blocks with barriers write one place",
                      [&](unsigned) { launch1(write_one_place, 3, &place, true); }},
                     {"endless wait", [&](unsigned) { launch1(wait_for, 1, &place); }},
                     {"other operation", [](unsigned) { check_meeting(kOtherOperation); }},
                     {"other mask", [](unsigned) { check_meeting(kOtherMask); }},
                     {"not in the mask", [](unsigned) { check_meeting(kNotInMask); }},
                     {"beyond the mask", [](unsigned) { check_meeting(kBeyondMask); }},
                     {"a lane is gone", [](unsigned) { check_meeting(kLaneGone); }},
                     {"31 lanes multiply", [](unsigned) { check_meeting(kPartOfMma); }},
                     {"behind dynamic memory", [](unsigned) { check_access(kBehindDynamic); }},
                     {"before dynamic memory", [](unsigned) { check_access(kBeforeDynamic); }},
                     {"behind an array", [](unsigned) { check_access(kBehindStatic); }},
                     {"misaligned vector", [](unsigned) { check_access(kMisaligned); }},
                     {"misaligned matrix", [](unsigned) { check_access(kMatrixMisaligned); }},
                     {"matrix outside", [](unsigned) { check_access(kMatrixOutside); }},
                     {"too large an array", [](unsigned) { check_access(kTooLarge); }},
                     {"copy not waited for", [](unsigned) { check_copy(kNoWait); }},
                     {"wait one group short", [](unsigned) { check_copy(kGroupShort); }},
                     {"no barrier after a copy", [](unsigned) { check_copy(kNoBarrier); }},
                     {"copy not committed", [](unsigned) { check_copy(kUncommitted); }},
                     {"two copies to one place", [](unsigned) { check_copy(kTwice); }},
                     {"misaligned copy", [](unsigned) { check_copy(kCopyMisaligned); }},
                     {"copy to global memory", [](unsigned) { check_copy(kNotShared); }},
                     {"copy beyond the source", [](unsigned) { check_copy(kSourceEnds); }},
                     {"device check", [&](unsigned) { launch1(doubt, 1, 5); }}});
}
