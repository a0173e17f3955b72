// Rotary position embedding from tables (Su et al. 2021, https://arxiv.org/abs/2104.09864).
#pragma once
#include <cstdint>

#include "slipway/numeric.cuh"

namespace slipway {

// The tables of one layer. A pair (a, b) of a head at position p becomes (a cos - b sin, b cos + a sin) with
// cos = cos[p][i] and sin = sin[p][i], where pair i is elements (i, i + rotary_dim / 2), or (2i, 2i + 1) if
// interleaved. Elements from rotary_dim on pass through.
struct RotaryTable {
  const void* cos = nullptr;  // [max_positions, rotary_dim / 2] float if `float_table`, else the heads' type
  const void* sin = nullptr;  // the same
  bool float_table = true;
  bool interleaved = false;
  int rotary_dim = 0;  // even, at most the head size; 0: nothing is turned and no table is read
  int64_t max_positions = 0;
};

// Turns the pair (a, b). Nothing is fused, so that every compiler makes the same bits.
__device__ __forceinline__ void turn(float& a, float& b, float cos, float sin) {
  const float turned = add(multiply(a, cos), -multiply(b, sin));
  b = add(multiply(b, cos), multiply(a, sin));
  a = turned;
}

}  // namespace slipway
