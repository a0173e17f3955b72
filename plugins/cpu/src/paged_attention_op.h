// The operators' kernels as ONNX Runtime sees them.
#pragma once

#include <cstdint>

#include "ort_call.h"

namespace slipway::cpu {

// Attributes of a PagedAttention node, as in plugins/schemas.py.
struct PagedAttentionAttributes {
  int64_t num_heads = 0;
  int64_t kv_num_heads = 0;
  float scale = 0.0f;
  float softcap = 0.0f;
  int64_t do_rotary = 0;
  int64_t rotary_interleaved = 0;
  int64_t local_window_size = -1;
};

// Of weights that are packed as include/quantized.h says.
struct QuantizedAttributes {
  int64_t bits = 8;     // of a code: 8 or 4
  int64_t columns = 0;  // of the product, or rows of the table
  bool input_blocks = false;  // 4 bit: each block of a row's inputs is rounded with a scale of its own
};

void run_paged_attention(const PagedAttentionAttributes& attributes, const ort::Call& call);
void run_skip_rms_normalization(float epsilon, const ort::Call& call);
void run_skip_layer_normalization(float epsilon, const ort::Call& call);
void run_bias_gelu(bool tanh, const ort::Call& call);
void run_geglu(bool tanh, const ort::Call& call);
void run_swiglu(const ort::Call& call);
void run_expert_linear(bool transposed, const ort::Call& call);
void run_quantized_matmul(const QuantizedAttributes& attributes, const ort::Call& call);
void run_quantized_gather(const QuantizedAttributes& attributes, int64_t size, const ort::Call& call);
void run_quantized_expert_linear(const QuantizedAttributes& attributes, const ort::Call& call);
void run_fake_quantize_tokens(const ort::Call& call);

}  // namespace slipway::cpu
