// Packed e4m3, int8 and int4 to pairs of 16-bit numbers, exactly, in few instructions: for inner loops. T is __half or
// __nv_bfloat16; a register holds two of them, the first in its low half. Scales are the caller's to multiply by.
//
// The integers by the trick of Kim et al. 2022, "Who Says Elephants Can't Run" (arXiv 2211.10017): an integer placed
// in the mantissa of a power of two whose last place is 1 is that power plus the integer.
#pragma once
#include "slipway/numeric.cuh"

namespace slipway {

// 1024 or 128: the least number of T that has a last place of 1 and room for four bits below it.
template <class T>
constexpr uint32_t kMagic = ptx::IsHalf<T>::value ? 0x64006400u : 0x43004300u;

// ---- e4m3 ---------------------------------------------------------------------------------------------
// For chips without the instructions of sm_89. The magnitude's seven bits, moved below T's sign, are the number times
// 2^-8 (of half) or 2^-120 (of bfloat16), subnormal numbers included. What would be 480 is NaN.
template <class T>
__device__ __forceinline__ void expand_e4m3_by_bits(uint32_t four, uint32_t (&out)[2]) {
  constexpr bool half = ptx::IsHalf<T>::value;
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const uint32_t x = ptx::prmt(four, 0, i == 0 ? 0x1404 : 0x3424);  // each byte on top of 16 bits
    const uint32_t bits = (x & 0x7f007f00u) >> (half ? 1 : 4);
    const uint32_t magnitude = ptx::multiply2<T>(bits, half ? 0x5c005c00u : 0x7b807b80u);
    // sm_80 compares pairs of halves in one instruction, but not of bfloat16: there 0x7f plus one carries.
    const uint32_t nan = half ? ptx::greater2<T>(magnitude, 0x5f005f00u)
                              : ((bits + 0x00100010u) >> 11 & 0x00010001u) * 0x7fffu;
    out[i] = ptx::lop3<ptx::kOr>(magnitude, x & 0x80008000u, nan);
  }
}
// Four e4m3, the first in the lowest byte, to four T in order. NaN stays NaN.
template <class T>
__device__ __forceinline__ void expand_e4m3(uint32_t four, uint32_t (&out)[2]) {
#if defined(__CUDACC__) && defined(SLIPWAY_HAS_E4M3_INSTRUCTIONS)
#pragma unroll
  for (int i = 0; i < 2; i++) {
    out[i] = ptx::halves_of_e4m3x2(uint16_t(four >> 16 * i));
    if constexpr (!ptx::IsHalf<T>::value) {
      const float2 x = unpack<__half>(out[i]);
      out[i] = pack<T>(x.x, x.y);
    }
  }
#else
  expand_e4m3_by_bits<T>(four, out);
#endif
}

// ---- int8 ---------------------------------------------------------------------------------------------
// Four int8, the first in the lowest byte, to four T in order.
template <class T>
__device__ __forceinline__ void expand_int8(uint32_t four, uint32_t (&out)[2]) {
  const uint32_t biased = four ^ 0x80808080u;  // 0 to 255 for -128 to 127
  if constexpr (ptx::IsHalf<T>::value) {
    constexpr uint32_t zero = 0x64806480u;  // 1024 + 128
    out[0] = ptx::subtract2<T>(ptx::prmt(biased, kMagic<T>, 0x5150), zero);
    out[1] = ptx::subtract2<T>(ptx::prmt(biased, kMagic<T>, 0x5352), zero);
  } else {  // eight bits do not fit below 128: by way of float, whose low half is then zero
    uint32_t x[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
      x[i] = __float_as_uint(__uint_as_float(ptx::prmt(biased, 0x4b000000u, 0x7650 | i)) - 8388736.0f);  // 2^23 + 128
    out[0] = ptx::prmt(x[0], x[1], 0x7632), out[1] = ptx::prmt(x[2], x[3], 0x7632);
  }
}

// ---- int4 ---------------------------------------------------------------------------------------------
// Eight nibbles of 0 to 15, number 0 the lowest, minus a zero point. out[i] holds nibbles i and i + 4: weights whose
// neighbours shall come out in one register are packed in the order 0, 2, 4, 6, 1, 3, 5, 7 (`kInt4Order`).
// zero: int4_zero<T>(z, z') for the zero points of the low and high halves.
template <class T>
__device__ __forceinline__ uint32_t int4_zero(uint32_t lo, uint32_t hi) {
  return kMagic<T> + (lo | hi << 16);
}
template <class T>
__device__ __forceinline__ void expand_int4(uint32_t eight, uint32_t zero, uint32_t (&out)[4]) {
#pragma unroll
  for (int i = 0; i < 4; i++)
    out[i] = ptx::subtract2<T>(ptx::lop3<ptx::kAndOr>(eight >> 4 * i, 0x000f000fu, kMagic<T>), zero);
}

}  // namespace slipway
