// The kernels of one instruction set, and which set is in use.
#pragma once

#include "packed_attention.h"
#include "paged_attention.h"
#include "quantized.h"

namespace slipway::cpu {

// Rows of `input` [rows, in] times the matrices of `weight` [experts, out, in] (transposed: [experts, in, out]) give
// rows of `output` [rows, out].
struct ExpertLinear {
  const float* input;
  const float* weight;
  float* output;
  int64_t in, out;
  bool transposed;
};

// One row of a normalized residual sum; `input_bias`, `bias` and `sum` may be null.
struct SkipLayerRow {
  const float *input, *skip, *input_bias, *weight, *bias;
  float *output, *sum;
};

// Every function works on raw pointers, allocates at most thread-local scratch and throws nothing.
struct Kernels {
  const char* name;

  // Tokens [first, last): scaled and turned queries to scratch, turned keys and the values to their slots.
  void (*prepare)(const PagedAttention& call, int first, int last);

  // One work item, after all tokens were prepared. False: no memory for scratch.
  bool (*attend)(const PagedAttention& call, const WorkItem& item);

  // Keys of tokens [first, last) of packed texts, turned; then one work item. False: no memory for scratch.
  void (*turn_packed_keys)(const PackedAttention& call, int first, int last);
  bool (*attend_packed)(const PackedAttention& call, const PackedItem& item);

  // `count` >= 1 rows of `width` as one: their sum, taken in order, or the maximum of each element.
  void (*pool_rows)(const float* rows, int64_t count, int64_t width, bool maximum, float* output);

  // One row: sum = input + skip (kept where sum is not null), output = sum * rsqrt(mean(sum^2) + epsilon) *
  // weight.
  void (*skip_rms_row)(const float* input, const float* skip, const float* weight, float epsilon,
                       int64_t size, float* output, float* sum);

  // One row: sum = input + skip + input_bias, output = (sum - mean) * rsqrt(variance + epsilon) * weight + bias.
  void (*skip_layer_row)(const SkipLayerRow& row, float epsilon, int64_t size);

  // One row: output = gelu(input + bias); by erf, or by tanh.
  void (*bias_gelu_row)(const float* input, const float* bias, int64_t size, float* output);
  void (*bias_tanh_gelu_row)(const float* input, const float* bias, int64_t size, float* output);

  // One row of `size` gates followed by `size` ups: output = gelu(gate) * up; by erf, or by tanh.
  void (*geglu_row)(const float* gate_up, int64_t size, float* output);
  void (*tanh_geglu_row)(const float* gate_up, int64_t size, float* output);

  // One row of `size` gates followed by `size` ups: output = silu(gate) * up.
  void (*swiglu_row)(const float* gate_up, int64_t size, float* output);

  // Outputs [first, last) of the rows that go to one expert.
  void (*expert_linear)(const ExpertLinear& call, int expert, const int32_t* rows, int n_rows, int64_t first,
                        int64_t last);

  // Row `row` of `rows` from x [rows.size], in codes or in wide codes; `given` is its scale, or 0 for its own.
  void (*quantize_row)(const float* x, float given, const QuantizedRows& rows, int64_t row);
  int code_bytes;  // of one of its codes
  void (*quantize_wide_row)(const float* x, float given, const QuantizedRows& rows, int64_t row);

  // y = what the codes of x stand for, with x's own scale.
  void (*fake_quantize_row)(const float* x, int64_t size, float* y);

  // Rows [first_row, last_row) times blocks [first, last) of 16 columns: weights of 8 bits with a scale a column; of 4 bits
  // in blocks; of 8 bits in blocks, with rows of wide codes.
  void (*byte_matmul)(const QuantizedMatMul& call, int64_t first_row, int64_t last_row, int64_t first, int64_t last);
  void (*nibble_matmul)(const QuantizedMatMul& call, int64_t first_row, int64_t last_row, int64_t first,
                        int64_t last);
  void (*byte_block_matmul)(const QuantizedMatMul& call, int64_t first_row, int64_t last_row, int64_t first,
                            int64_t last);
};

// Null where the compiler had no such instruction set to offer (another processor family).
const Kernels* avx512_vnni_kernels();
const Kernels* avx512_kernels();
const Kernels* avx2_kernels();
const Kernels* plain_kernels();

// The best set that this processor has, unless one was forced.
const Kernels& active_kernels();

}  // namespace slipway::cpu

extern "C" {
// For tests: 0 the best available, 1 plain, 2 AVX2, 3 AVX-512, 4 AVX-512 with VNNI. Returns 1, or 0 when this processor (or this
// build) lacks the set; then nothing changes.
__attribute__((visibility("default"))) int slipway_cpu_force_isa(int set);

// Name of the set in use: "plain", "avx2", "avx512" or "avx512_vnni".
__attribute__((visibility("default"))) const char* slipway_cpu_isa();
}
