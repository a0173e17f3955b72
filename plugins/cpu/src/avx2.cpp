// Kernels for AVX2 with FMA and F16C. This file alone is compiled for it.
#include "kernels.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "dot_avx2.h"
//
#include "kernel_table.h"

namespace slipway::cpu {
const Kernels* avx2_kernels() {
  static constexpr Kernels kernels = KernelsOf<Avx2, Avx2Dot>::table("avx2");
  return &kernels;
}
}  // namespace slipway::cpu
#else
namespace slipway::cpu {
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace slipway::cpu
#endif
