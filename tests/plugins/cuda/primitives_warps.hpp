// Lanes that meet: shuffles, votes, reductions, __syncwarp.
#pragma once
#include "program.hpp"

namespace {

constexpr uint32_t kAll = 0xffffffffu;

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

const std::vector<Check> kWarps = {
    {"shuffles", check_shuffles},
    {"votes", check_votes},
    {"syncwarp", check_syncwarp},
};

}  // namespace
