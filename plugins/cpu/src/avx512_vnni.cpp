// Kernels for AVX-512 with VNNI: those of AVX-512, and products of codes. This file alone is compiled for it.
#include "kernels.h"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include "dot_vnni.h"
//
#include "quantized_matmul.h"

namespace slipway::cpu {
const Kernels* avx512_vnni_kernels() {
  static const Kernels kernels = [] {
    Kernels table = *avx512_kernels();
    table.name = "avx512_vnni";
    table.quantize_row = quantize_row<VnniDot, kLargestCode>;
    table.quantize_wide_row = quantize_row<VnniWideDot, kLargestWideCode>;
    table.code_bytes = sizeof(VnniDot::Code);
    table.byte_matmul = quantized_matmul<VnniDot, Form::kBytes>;
    table.nibble_matmul = quantized_matmul<VnniDot, Form::kNibbleBlocks>;
    table.byte_block_matmul = quantized_matmul<VnniWideDot, Form::kByteBlocks>;
    return table;
  }();
  return &kernels;
}
}  // namespace slipway::cpu
#else
namespace slipway::cpu {
const Kernels* avx512_vnni_kernels() { return nullptr; }
}  // namespace slipway::cpu
#endif
