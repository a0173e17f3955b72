// The operators of packed texts as ONNX Runtime sees them.
#pragma once

#include <cstdint>

#include "ort_call.h"

namespace slipway::cpu {

// Attributes of a PackedAttention node, as in plugins/schemas.py.
struct PackedAttentionAttributes {
  int64_t num_heads = 0;
  int64_t kv_num_heads = 0;
  float scale = 0.0f;
  int64_t left_window = -1;
  int64_t right_window = -1;
  int64_t rotary_interleaved = 0;
};

void run_packed_attention(const PackedAttentionAttributes& attributes, const ort::Call& call);
void run_packed_layout(const ort::Call& call);
void run_packed_pool(int64_t kind, const ort::Call& call);
void run_unpacked_rows(const ort::Call& call);
void run_embed_layer_normalization(float epsilon, const ort::Call& call);

}  // namespace slipway::cpu
