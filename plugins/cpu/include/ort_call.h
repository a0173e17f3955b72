// One call of an operator by ONNX Runtime: typed access to its inputs and outputs.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "ort_entries.h"

namespace slipway::ort {

// What is wrong with a call, in words; becomes an OrtStatus of code INVALID_ARGUMENT at the border.
struct InvalidArgument : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A status of ONNX Runtime on its way back to it.
struct Failed {
  Status* status;
};

inline void check(Status* status) {
  if (status) throw Failed{status};
}

// A tensor's memory, type and shape. False where the optional input is absent.
struct Tensor {
  void* data = nullptr;
  ElementType type = kUndefined;
  size_t rank = 0;
  const int64_t* shape = nullptr;  // owned by ONNX Runtime, valid during the call

  explicit operator bool() const { return type != kUndefined; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
  int64_t last() const { return shape[rank - 1]; }
  // Elements divided by those of the last axis.
  int64_t rows() const {
    int64_t product = 1;
    for (size_t i = 0; i + 1 < rank; ++i) product *= shape[i];
    return product;
  }
};

inline std::string describe(const Tensor& tensor) {
  std::string text = "[";
  for (size_t i = 0; i < tensor.rank; ++i) text += (i ? ", " : "") + std::to_string(tensor.shape[i]);
  return text + "]";
}

class Call {
 public:
  Call(const Api& api, KernelContext* context) : api_(api), context_(context) {
    check(api.KernelContext_GetInputCount()(context, &inputs_));
    check(api.KernelContext_GetOutputCount()(context, &outputs_));
  }

  // Input `index`, or an absent tensor.
  Tensor input(size_t index) const {
    Tensor tensor;
    const Value* value = find_input(index);
    if (!value) return tensor;
    check(api_.GetTensorElementTypeAndShapeDataReference()(value, &tensor.type, &tensor.shape, &tensor.rank));
    check(api_.GetTensorMutableData()(const_cast<Value*>(value), &tensor.data));
    return tensor;
  }

  bool has_input(size_t index) const { return find_input(index) != nullptr; }

  // Allocates output `index`; null where the node does not have it.
  void* output(size_t index, const int64_t* shape, size_t rank) const {
    if (index >= outputs_) return nullptr;
    Value* value = nullptr;
    check(api_.KernelContext_GetOutput()(context_, index, shape, rank, &value));
    if (!value) return nullptr;
    void* data = nullptr;
    check(api_.GetTensorMutableData()(value, &data));
    return data;
  }

  // f(i) for i in [0, total) on the session's threads.
  template <class F>
  void parallel_for(size_t total, F& f) const {
    if (total == 1) {
      f(size_t(0));
      return;
    }
    if (total == 0) return;
    auto run = [](void* data, size_t i) { (*static_cast<F*>(data))(i); };
    check(api_.KernelContext_ParallelFor()(context_, run, total, 0, &f));
  }

 private:
  const Value* find_input(size_t index) const {
    const Value* value = nullptr;
    if (index < inputs_) check(api_.KernelContext_GetInput()(context_, index, &value));
    return value;
  }

  const Api& api_;
  KernelContext* context_;
  size_t inputs_ = 0, outputs_ = 0;
};

}  // namespace slipway::ort
