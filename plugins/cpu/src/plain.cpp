// Kernels that every processor runs.
#include "dot_plain.h"
#include "kernel_table.h"

namespace slipway::cpu {
const Kernels* plain_kernels() {
  static constexpr Kernels kernels = KernelsOf<Plain, PlainDot>::table("plain");
  return &kernels;
}
}  // namespace slipway::cpu
