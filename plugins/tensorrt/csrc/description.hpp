// What libslipway_kernels.so says of an operator (slipway_describe), read.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace slipway_tensorrt {

enum class Role { kInput, kOutput, kInOut };

struct TensorDescription {
  std::string name;
  Role role;
  bool optional;
  std::string type;  // a type variable, or a type's own name
  size_t rank;
};

struct AttributeDescription {
  std::string name;
  double standard;
  bool integer;
};

struct Description {
  std::map<std::string, std::vector<int32_t>> types;  // of type variables and of names: onnx.TensorProto.DataType
  std::vector<TensorDescription> tensors;
  std::vector<AttributeDescription> attributes;

  // Place of a tensor, -1 when there is none of that name.
  int tensor(const std::string& name) const;
  int attribute(const std::string& name) const;
};

// Of one operator. Throws std::runtime_error when the library has no such operator.
const Description& describe(const char* op);

}  // namespace slipway_tensorrt
