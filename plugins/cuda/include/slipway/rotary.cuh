// Rotary position embedding from tables (Su et al. 2021, https://arxiv.org/abs/2104.09864).
#pragma once
#include <cstdint>

#include "slipway/numeric.cuh"
#include "slipway/ptx.cuh"

namespace slipway {

// The tables of one layer. A pair (a, b) of a head at position p becomes (a cos - b sin, b cos + a sin) with cos =
// cos[p][i] and sin = sin[p][i], where pair i is elements (i, i + rotary_dim / 2), or (2i, 2i + 1) if interleaved.
// Elements from rotary_dim on pass through.
struct RotaryTable {
  const void* cos = nullptr;  // [max_positions, rotary_dim / 2] float if `float_table`, else the type of the heads
  const void* sin = nullptr;  // the same
  bool float_table = true;
  bool interleaved = false;
  int rotary_dim = 0;  // even, at most the head size; 0: nothing is turned and no table is read
  int64_t max_positions = 0;
};

// Products and sums that no compiler fuses, so that all of them make the same bits.
__device__ __forceinline__ float multiply(float a, float b) {
#ifdef __CUDACC__
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
__device__ __forceinline__ float add(float a, float b) {
#ifdef __CUDACC__
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}

// Turns the pair (a, b).
__device__ __forceinline__ void turn(float& a, float& b, float cos, float sin) {
  const float turned = add(multiply(a, cos), -multiply(b, sin));
  b = add(multiply(b, cos), multiply(a, sin));
  a = turned;
}

}  // namespace slipway
