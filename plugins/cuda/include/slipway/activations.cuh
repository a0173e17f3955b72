// Activations of the rows of a matrix, gated (Shazeer 2020, arXiv 2002.05202) or with a bias, quantized on the way out.
//
//     gated:  y = f(gate) * up       gate is the first half of a row, up the second
//     plain:  y = f(input + bias)
//
//     silu      f(x) = x / (1 + exp(-x))
//     gelu tanh f(x) = x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3); equals x / 2 (1 + tanh(u))
//     gelu erf  f(x) = x / 2 (1 + erf(x / sqrt(2)))
//
// All in float32.
#pragma once
#include "slipway/rows.cuh"

namespace slipway {

enum class Activation { kSilu = 0, kGeluTanh = 1, kGeluErf = 2 };

__device__ __forceinline__ float activated(Activation kind, float x) {
  if (kind == Activation::kGeluErf) return 0.5f * x * (1.f + erff(x * 0.70710678f));
  // For very negative x the exponential is infinite, and the quotient -0.
  const float t = kind == Activation::kSilu ? x : 1.5957691f * (x + 0.044715f * x * x * x);
  return x / (1.f + __expf(-t));
}

// T is the type of the rows, Out that of the result: T, int8_t or e4m3. All arrays are aligned to 16 bytes.
template <class T, class Out>
struct ActivationParams {
  const T* input = nullptr;  // [rows, columns], gated [rows, 2 * columns]
  const T* bias = nullptr;   // [columns], optional; not when gated
  Activation kind = Activation::kSilu;
  bool gated = false;
  int64_t rows = 0, columns = 0;  // of the result
  RowOutput<Out> to = {};
};

// f(gate) * up, or f(input + bias).
template <class T>
struct ActivationSource {
  const T* first;   // gate, or the input
  const T* second;  // up, or the bias, which may be null
  Activation kind;
  bool gated, whole;  // whole: rows can be read in chunks

  struct Fetched {
    Chunk<T> first, second;
  };
  __device__ __forceinline__ Fetched fetch(int chunk, int count) const {
    Fetched fetched;
    fetched.first = read_chunk(first + int64_t(chunk) * kChunk, count, whole);
    if (second) fetched.second = read_chunk(second + int64_t(chunk) * kChunk, count, whole);
    return fetched;
  }
  __device__ __forceinline__ void expand(const Fetched& fetched, int, int, float (&x)[kChunk]) const {
#pragma unroll
    for (int i = 0; i < kChunk; i++) {
      const float a = to_float(fetched.first[i]), b = second ? to_float(fetched.second[i]) : 0.f;
      x[i] = activated(kind, gated ? a : a + b);
      if (gated) x[i] *= b;
    }
  }
};

// Where rows are read again, the assembler aims at three blocks a multiprocessor, for which it has too few registers on
// sm_100a; two are asked for. 0: as it likes.
template <class T, class Out, RowForm kForm>
__global__ void __launch_bounds__(most_threads(kForm), kForm == RowForm::kReread ? 2 : 0)
    activation_kernel(const ActivationParams<T, Out> p) {
  const bool whole = kForm != RowForm::kReread || in_chunks(p.columns);
  for_each_row<kForm>(p.rows, [&](int64_t row, auto& team) {
    const T* const begin = p.input + row * p.columns * (p.gated ? 2 : 1);
    const ActivationSource<T> source{begin, p.gated ? begin + p.columns : p.bias, p.kind, p.gated, whole};
    RowValues<kForm, ActivationSource<T>> values(source, p.columns, team.thread, team.threads);
    write_row(p.to, row, values, team, [](int, int, float(&)[kChunk]) {});
  });
}

}  // namespace slipway
