// Chooses how many rows a block takes, and starts it.
#pragma once
#include "device.hpp"
#include "weight_only_gemm.hpp"

namespace slipway {

template <class Form>
void launch_form(const WeightOnlyGemmParams& p, void* stream) {
  const dim3 grid(unsigned((p.rows + Form::kRows - 1) / Form::kRows),
                  unsigned((p.column_blocks + kGemmColumnWarps - 1) / kGemmColumnWarps), unsigned(p.splits));
  ptx::launch(weight_only_gemm_kernel<Form>, grid, dim3(kGemmThreads), Form::kSharedBytes, stream, p);
}

template <WeightFormat kFormat, WeightScales kScales>
void launch_rows(const WeightOnlyGemmParams& p, DType type, void* stream) {
  dispatch_half(type, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using Most = GemmForm<T, kFormat, kScales, 32>;
    if (p.rows <= 8) launch_form<GemmForm<T, kFormat, kScales, 8>>(p, stream);
    else if (p.rows <= 16 || Most::kSharedBytes > device().max_shared_bytes)
      launch_form<GemmForm<T, kFormat, kScales, 16>>(p, stream);
    else launch_form<Most>(p, stream);
  });
}

}  // namespace slipway
