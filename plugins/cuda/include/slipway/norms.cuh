// RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467) and LayerNorm (Ba et al. 2016, arXiv 1607.06450) of the rows of
// a matrix, with the residual add before and quantization behind.
//
//     x = input + skip                                      in float32; skip optional
//     y = (x - mean) / sqrt(variance + epsilon) * (weight + weight_offset) + bias
//
// LayerNorm takes mean and variance over the row; RMSNorm mean 0 and the mean of x^2. All in float32.
#pragma once
#include "slipway/rows.cuh"

namespace slipway {

// T is the type of the rows, Out that of the result: T, int8_t or e4m3. All arrays are aligned to 16 bytes.
template <class T, class Out>
struct NormParams {
  const T* input = nullptr;  // [rows, columns]
  const T* skip = nullptr;   // [rows, columns], optional
  T* sum = nullptr;          // [rows, columns] input + skip, optional; may be `input` or `skip` itself when
                             // columns % 8 == 0 and columns <= 16384
  // [columns], both of T or both of float.
  const void* weight = nullptr;
  const void* bias = nullptr;  // optional
  bool float_weight = false;
  float weight_offset = 0.f;
  float epsilon = 0.f;
  bool centered = false;  // LayerNorm
  int64_t rows = 0, columns = 0;
  RowOutput<Out> to = {};
};

// input + skip, which is written to `sum` on the way.
template <class T>
struct NormSource {
  const T* input;
  const T* skip;
  T* sum;
  bool whole;  // rows can be read in chunks

  struct Fetched {
    Chunk<T> input, skip;
  };
  __device__ __forceinline__ Fetched fetch(int chunk, int count) const {
    Fetched fetched;
    fetched.input = read_chunk(input + int64_t(chunk) * kChunk, count, whole);
    if (skip) fetched.skip = read_chunk(skip + int64_t(chunk) * kChunk, count, whole);
    return fetched;
  }
  __device__ __forceinline__ void expand(const Fetched& fetched, int chunk, int count, float (&x)[kChunk]) const {
#pragma unroll
    for (int i = 0; i < kChunk; i++) x[i] = to_float(fetched.input[i]);
    if (!skip) return;
#pragma unroll
    for (int i = 0; i < kChunk; i++) x[i] += to_float(fetched.skip[i]);
    if (sum) write_chunk(sum + int64_t(chunk) * kChunk, x, count, whole);
  }
};

template <class T, class F>
__device__ __forceinline__ void with_vector(const void* vector, bool is_float, int chunk, int count, bool whole,
                                            F f) {
  if (is_float) {
    const auto chunk_of = read_chunk(static_cast<const float*>(vector) + int64_t(chunk) * kChunk, count, whole);
#pragma unroll
    for (int i = 0; i < kChunk; i++) f(i, chunk_of[i]);
  } else {
    const auto chunk_of = read_chunk(static_cast<const T*>(vector) + int64_t(chunk) * kChunk, count, whole);
#pragma unroll
    for (int i = 0; i < kChunk; i++) f(i, to_float(chunk_of[i]));
  }
}

template <class T, class Out, RowForm kForm>
__global__ void __launch_bounds__(most_threads(kForm)) norm_kernel(const NormParams<T, Out> p) {
  const bool whole = kForm != RowForm::kReread || in_chunks(p.columns);
  const float count_inverse = 1.f / float(p.columns);
  for_each_row<kForm>(p.rows, [&](int64_t row, auto& team) {
    const int64_t begin = row * p.columns;
    NormSource<T> source{p.input + begin, p.skip ? p.skip + begin : nullptr, p.sum ? p.sum + begin : nullptr, whole};
    RowValues<kForm, NormSource<T>> values(source, p.columns, team.thread, team.threads);
    float mean = 0.f, squares = 0.f;
    if (p.centered) {
      float total = 0.f;
      values.each([&](int, int, const float(&x)[kChunk]) {
#pragma unroll
        for (int i = 0; i < kChunk; i++) total += x[i];  // what lies beyond the row's end is zero
      });
      mean = team.sum(total) * count_inverse;
      source.sum = nullptr;  // written by now
    }
    values.each([&](int, int count, const float(&x)[kChunk]) {
#pragma unroll
      for (int i = 0; i < kChunk; i++)
        if (i < count) squares += (x[i] - mean) * (x[i] - mean);
    });
    source.sum = nullptr;  // written by now
    const float factor = 1.f / sqrtf(team.sum(squares) * count_inverse + p.epsilon);
    write_row(p.to, row, values, team, [&](int chunk, int count, float(&x)[kChunk]) {
      with_vector<T>(p.weight, p.float_weight, chunk, count, whole, [&](int i, float weight) {
        x[i] = (x[i] - mean) * factor * (weight + p.weight_offset);
      });
      if (p.bias)
        with_vector<T>(p.bias, p.float_weight, chunk, count, whole, [&](int i, float bias) { x[i] += bias; });
    });
  });
}

}  // namespace slipway
