// The table of kernels of one vector type S and one kind of integer products D; each src/<instruction set>.cpp makes one.
#pragma once

#include "elementwise.h"
#include "expert_linear.h"
#include "kernels.h"
#include "packed_attention.h"
#include "pool_rows.h"
#include "prefill.h"
#include "prepare.h"
#include "quantized_matmul.h"

namespace slipway::cpu {

template <class S, class D>
struct KernelsOf {
  static void prepare(const PagedAttention& call, int first, int last) {
    // One key head lies in scratch; head sizes are bounded by find_problem.
    float key[kMaxHeadDim];
    for (int token = first; token < last; ++token) {
      switch (call.cache_type) {
        case CacheType::kFloat32: prepare_token<S, float>(call, token, key); break;
        case CacheType::kFloat16: prepare_token<S, Half>(call, token, key); break;
        case CacheType::kBFloat16: prepare_token<S, BFloat16>(call, token, key); break;
        case CacheType::kInt8: prepare_token<S, Int8>(call, token, key); break;
        case CacheType::kE4m3: prepare_token<S, E4m3>(call, token, key); break;
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
      case CacheType::kInt8: return attend_typed<Int8>(call, item);
      case CacheType::kE4m3: return attend_typed<E4m3>(call, item);
      default: return attend_typed<float>(call, item);
    }
  }

  static constexpr Kernels table(const char* name) {
    return {name,
            prepare,
            attend,
            turn_packed_keys<S>,
            attend_packed<S>,
            pool_rows<S>,
            skip_rms_row<S>,
            skip_layer_row<S>,
            bias_gelu_row<S, false>,
            bias_gelu_row<S, true>,
            geglu_row<S, false>,
            geglu_row<S, true>,
            swiglu_row<S>,
            expert_linear<S>,
            quantize_row<D, kLargestCode>,
            sizeof(typename D::Code),
            quantize_row<typename D::Wide, kLargestWideCode>,
            fake_quantize_row<S>,
            quantized_matmul<D, Form::kBytes>,
            quantized_matmul<D, Form::kNibbleBlocks>,
            quantized_matmul<typename D::Wide, Form::kByteBlocks>};
  }
};

}  // namespace slipway::cpu
