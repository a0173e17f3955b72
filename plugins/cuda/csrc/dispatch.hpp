// From run-time dtypes and head sizes to the template arguments that kernels are compiled for.
#pragma once
#include <type_traits>

#include "operator.hpp"
#include "slipway/numeric.cuh"

namespace slipway {

template <class T>
struct Tag {
  using type = T;
};

// Calls f(Tag<T>{}) with T = __half or __nv_bfloat16. SLIPWAY_ONLY_FLOAT16 leaves out all but __half: a faster build
// for tests.
template <class F>
void dispatch_half(DType type, F&& f) {
  switch (type) {
    case kFloat16: return f(Tag<__half>{});
#ifndef SLIPWAY_ONLY_FLOAT16
    case kBFloat16: return f(Tag<__nv_bfloat16>{});
#endif
    default: require(false, "dtype %s; allowed are float16 and bfloat16", dtype_name(type));
  }
}

// The same with float too.
template <class F>
void dispatch_float(DType type, F&& f) {
#ifndef SLIPWAY_ONLY_FLOAT16
  if (type == kFloat32) return f(Tag<float>{});
#endif
  dispatch_half(type, f);
}

// Calls f(std::integral_constant<int, N>{}) with the least compiled N that is at least head_size: 64, 128 or 256;
// smaller heads run padded. SLIPWAY_MAX_HEAD_SIZE (64, 128 or 256) leaves out larger ones: a faster build for tests.
#ifndef SLIPWAY_MAX_HEAD_SIZE
#define SLIPWAY_MAX_HEAD_SIZE 256
#endif
template <class F>
void dispatch_head_size(int64_t head_size, F&& f) {
  require(head_size >= 1 && head_size <= SLIPWAY_MAX_HEAD_SIZE, "head size %lld; allowed are 1 to %d",
          static_cast<long long>(head_size), SLIPWAY_MAX_HEAD_SIZE);
  if (head_size <= 64) return f(std::integral_constant<int, 64>{});
#if SLIPWAY_MAX_HEAD_SIZE >= 128
  if (head_size <= 128) return f(std::integral_constant<int, 128>{});
#endif
#if SLIPWAY_MAX_HEAD_SIZE >= 256
  return f(std::integral_constant<int, 256>{});
#endif
}

}  // namespace slipway
