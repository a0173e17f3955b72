// Kernels for AVX-512 (F, BW, DQ, VL). This file alone is compiled for it.
#include "kernels.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include "dot_avx512.h"
//
#include "kernel_table.h"

namespace slipway::cpu {
const Kernels* avx512_kernels() {
  static constexpr Kernels kernels = KernelsOf<Avx512, Avx512Dot>::table("avx512");
  return &kernels;
}
}  // namespace slipway::cpu
#else
namespace slipway::cpu {
const Kernels* avx512_kernels() { return nullptr; }
}  // namespace slipway::cpu
#endif
