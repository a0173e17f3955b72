// The table of kernels of one vector type S; each src/<instruction set>.cpp makes one.
#pragma once

#include "elementwise.h"
#include "expert_linear.h"
#include "kernels.h"
#include "prefill.h"
#include "prepare.h"

namespace slipway::cpu {

template <class S>
struct KernelsOf {
  static void prepare(const PagedAttention& call, int first, int last) {
    // One key head lies in scratch; head sizes are bounded by find_problem.
    float key[kMaxHeadDim];
    for (int token = first; token < last; ++token) {
      switch (call.cache_type) {
        case CacheType::kFloat32: prepare_token<S, float>(call, token, key); break;
        case CacheType::kFloat16: prepare_token<S, Half>(call, token, key); break;
        case CacheType::kBFloat16: prepare_token<S, BFloat16>(call, token, key); break;
      }
    }
  }

  template <class T>
  static bool attend_typed(const PagedAttention& call, const WorkItem& item) {
    return call.new_tokens(item.sequence) == 1 ? attend_token<S, T>(call, item)
                                               : attend_chunk<S, T>(call, item);
  }

  static bool attend(const PagedAttention& call, const WorkItem& item) {
    switch (call.cache_type) {
      case CacheType::kFloat16: return attend_typed<Half>(call, item);
      case CacheType::kBFloat16: return attend_typed<BFloat16>(call, item);
      default: return attend_typed<float>(call, item);
    }
  }

  static constexpr Kernels table(const char* name) {
    return {name,
            prepare,
            attend,
            skip_rms_row<S>,
            skip_layer_row<S>,
            bias_gelu_row<S, false>,
            bias_gelu_row<S, true>,
            geglu_row<S, false>,
            geglu_row<S, true>,
            swiglu_row<S>,
            expert_linear<S>};
  }
};

}  // namespace slipway::cpu
