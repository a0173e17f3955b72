// ldmatrix, stmatrix and mma.sync, by the layouts of the PTX ISA, chapter "Warp-level matrix instructions". All are
// of the whole warp. With g = lane / 4 and t = lane % 4 throughout.
#pragma once
#include "half.hpp"
#include "shared_memory.hpp"
#include "warp.hpp"

namespace emu {

// "Warp-level matrix load instruction: ldmatrix", shape .m8n8, .b16, N matrices: lane 8 * i + r holds the address of
// row r of matrix i; a lane receives elements (g, 2 * t) and (g, 2 * t + 1) of each, with .trans those of the
// transposed matrix.
template <int N, bool Trans>
void ldmatrix(uint32_t (&out)[N], const void* row, Where where) {
  struct A {
    unsigned char row[16];
    uint32_t* out;
  } a{{}, out};
  if (lane_id() < 8 * N) {
    if (!in_smem(row, 16)) fail("ldmatrix: row outside shared memory", where);
    if (uintptr_t(row) % 16) fail("ldmatrix: row not 16-byte aligned", where);
    get(a.row, row, 16);  // each lane reads its own row: the sanitizers see the right thread
  }
  collective<A>(Trans ? "ldmatrix.trans" : "ldmatrix", ~0u, a, [](A* const* all, uint32_t) EMU_FAST {
    const auto element = [&](int matrix, int r, int c) {
      uint16_t x;
      std::memcpy(&x, all[8 * matrix + r]->row + 2 * c, 2);
      return uint32_t(x);
    };
    for (int l = 0; l < 32; l++)
      for (int i = 0; i < N; i++) {
        const int r = l / 4, c = l % 4 * 2;
        const uint32_t lo = Trans ? element(i, c, r) : element(i, r, c);
        const uint32_t hi = Trans ? element(i, c + 1, r) : element(i, r, c + 1);
        all[l]->out[i] = lo | hi << 16;
      }
  }, where);
}

// "Warp-level matrix store instruction: stmatrix": the same the other way round.
template <int N, bool Trans>
void stmatrix(void* row, const uint32_t (&in)[N], Where where) {
  struct A {
    const uint32_t* in;
    uint16_t row[8];
  } a{in, {}};
  collective<A>(Trans ? "stmatrix.trans" : "stmatrix", ~0u, a, [](A* const* all, uint32_t) EMU_FAST {
    for (int l = 0; l < 32; l++)
      for (int i = 0; i < N; i++)
        for (int half = 0; half < 2; half++) {
          const int r = l / 4, c = l % 4 * 2 + half;
          all[8 * i + (Trans ? c : r)]->row[Trans ? r : c] = uint16_t(all[l]->in[i] >> 16 * half);
        }
  }, where);
  if (lane_id() >= 8 * N) return;
  if (!in_smem(row, 16)) fail("stmatrix: row outside shared memory", where);
  if (uintptr_t(row) % 16) fail("stmatrix: row not 16-byte aligned", where);
  put(row, reinterpret_cast<const unsigned char*>(a.row), 16);
}

// E4M3 (1 sign, 4 exponent, 3 mantissa bits, bias 7, no infinity; Micikevicius et al. 2022, arXiv 2209.05433).
EMU_FAST inline float e4m3_value(unsigned code) {
  const unsigned exponent = code >> 3 & 15, mantissa = code & 7;
  if (exponent == 15 && mantissa == 7) return __uint_as_float(0x7fffffff);
  const float magnitude = exponent == 0 ? std::ldexp(float(mantissa), -9)
                                        : std::ldexp(float(8 + mantissa), int(exponent) - 10);
  return code & 0x80 ? -magnitude : magnitude;
}

struct E4M3 {};  // names of operand types that no C++ type of ours stands for
struct TF32 {};

// What one register of an operand holds: how many elements, and each as a number.
template <class T>
struct Operand {
  static constexpr int kPerRegister = sizeof(T) == 2 ? 2 : 4;
  using Sum = float;
  EMU_FAST static float at(uint32_t reg, int i) { return part<T>(reg, i); }
};
template <>
struct Operand<E4M3> {
  static constexpr int kPerRegister = 4;
  using Sum = float;
  EMU_FAST static float at(uint32_t reg, int i) { return e4m3_value(reg >> 8 * i & 0xff); }
};
template <>
struct Operand<int8_t> {
  static constexpr int kPerRegister = 4;
  using Sum = int32_t;
  EMU_FAST static int32_t at(uint32_t reg, int i) { return int8_t(reg >> 8 * i); }
};
template <>
struct Operand<TF32> {  // 10 bits of mantissa; the others are ignored
  static constexpr int kPerRegister = 1;
  using Sum = float;
  EMU_FAST static float at(uint32_t reg, int) { return __uint_as_float(reg & 0xffffe000u); }
};

// D += A B, mma.sync.m16n8kK row.col, where K = 8 * kPerRegister ("Matrix fragments for mma.m16n8k8 .tf32",
// "... mma.m16n8k16 with floating point type", "... mma.m16n8k32"). Element i of a register stands for column
// t * kPerRegister + i of A (row of B), plus K / 2 in the second half of the registers; A's registers are (row g,
// first half), (g + 8, first), (g, second), (g + 8, second), B's are of column g. D's are (g, 2 t), (g, 2 t + 1),
// (g + 8, 2 t), (g + 8, 2 t + 1).
template <class T, class Sum>
void mma(Sum (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Where where) {
  struct A {
    Sum* d;
    const uint32_t *a, *b;
  } args{d, a, b};
  collective<A>("mma.sync", ~0u, args, [](A* const* all, uint32_t) EMU_FAST {
    constexpr int P = Operand<T>::kPerRegister, K = 8 * P;
    Sum a[16][K], b[K][8], c[16][8] = {};
    for (int l = 0; l < 32; l++)
      for (int i = 0; i < P; i++) {
        const int g = l / 4, k = l % 4 * P + i;
        for (int r = 0; r < 4; r++) a[g + r % 2 * 8][k + r / 2 * (K / 2)] = Operand<T>::at(all[l]->a[r], i);
        for (int r = 0; r < 2; r++) b[k + r * (K / 2)][g] = Operand<T>::at(all[l]->b[r], i);
      }
    for (int i = 0; i < 16; i++)
      for (int k = 0; k < K; k++)
        for (int j = 0; j < 8; j++) {
          if constexpr (std::is_same_v<Sum, int32_t>)
            c[i][j] = int32_t(uint32_t(c[i][j]) + uint32_t(a[i][k] * b[k][j]));
          else
            c[i][j] += a[i][k] * b[k][j];
        }
    for (int l = 0; l < 32; l++)
      for (int i = 0; i < 4; i++) {
        const Sum sum = c[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2];
        if constexpr (std::is_same_v<Sum, int32_t>)
          all[l]->d[i] = int32_t(uint32_t(all[l]->d[i]) + uint32_t(sum));
        else
          all[l]->d[i] += sum;
      }
  }, where);
}

}  // namespace emu
