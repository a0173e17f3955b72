// Kernels that every processor runs.
#include "kernel_table.h"
#include "simd_plain.h"

namespace slipway::cpu {
const Kernels* plain_kernels() {
  static constexpr Kernels kernels = KernelsOf<Plain>::table("plain");
  return &kernels;
}
}  // namespace slipway::cpu
