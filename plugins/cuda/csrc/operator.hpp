// How an operator is described, and the arguments that a launcher gets after they were checked against it.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "slipway/errors.hpp"
#include "slipway_kernels.h"

namespace slipway {

// The numbers of onnx.TensorProto.DataType. Four-bit weights travel packed, as uint8.
enum DType : int32_t {
  kAbsent = 0,
  kFloat32 = 1,
  kUInt8 = 2,
  kInt8 = 3,
  kInt16 = 5,
  kInt32 = 6,
  kInt64 = 7,
  kBool = 9,
  kFloat16 = 10,
  kUInt32 = 12,
  kUInt64 = 13,
  kBFloat16 = 16,
  kFloat8E4M3 = 17,
};
const char* dtype_name(int32_t dtype);  // "float16"; "dtype 99" for a number that is none of these
int64_t dtype_bytes(int32_t dtype);     // 0 for a number that is none of these

enum class Role { kInput, kOutput, kInOut };

struct Parameter {
  Role role;
  bool optional;
  const char* name;
  const char* type;  // a type variable of the operator, or a dtype's own name
  // One entry an axis: a symbol ("tokens"), a number ("2"), "symbol+1", "2*symbol", "symbol/2" (or other numbers).
  // A symbol has the same value wherever it occurs. "1|symbol": either 1 or the symbol's value.
  std::vector<std::string> shape;
  const char* meaning;
  bool strided = false;  // strides of all axes but the last are free; else the tensor is contiguous
};
inline Parameter input(const char* name, const char* type, std::vector<std::string> shape, const char* meaning) {
  return {Role::kInput, false, name, type, std::move(shape), meaning};
}
inline Parameter optional_input(const char* name, const char* type, std::vector<std::string> shape,
                                const char* meaning) {
  return {Role::kInput, true, name, type, std::move(shape), meaning};
}
inline Parameter output(const char* name, const char* type, std::vector<std::string> shape, const char* meaning) {
  return {Role::kOutput, false, name, type, std::move(shape), meaning};
}
inline Parameter optional_output(const char* name, const char* type, std::vector<std::string> shape,
                                 const char* meaning) {
  return {Role::kOutput, true, name, type, std::move(shape), meaning};
}
inline Parameter inout(const char* name, const char* type, std::vector<std::string> shape, const char* meaning) {
  return {Role::kInOut, false, name, type, std::move(shape), meaning};
}
inline Parameter optional_inout(const char* name, const char* type, std::vector<std::string> shape,
                                const char* meaning) {
  return {Role::kInOut, true, name, type, std::move(shape), meaning};
}
inline Parameter strided(Parameter parameter) {
  parameter.strided = true;
  return parameter;
}

// Travels as a double; `integer` values are checked to be whole.
struct Attribute {
  const char* name;
  double standard, least, most;  // the default, and the range of what is allowed
  const char* meaning;
  bool integer = false;
};
inline Attribute attribute(const char* name, double standard, double least, double most, const char* meaning) {
  return {name, standard, least, most, meaning};
}
inline Attribute integer_attribute(const char* name, int64_t standard, int64_t least, int64_t most,
                                   const char* meaning) {
  return {name, double(standard), double(least), double(most), meaning, true};
}

struct Operator;

// The arguments of one call. Every lookup by name is of a name in the description; another is a fault of ours.
class Arguments {
 public:
  // Checks everything that the description says. Throws Invalid. `with_data`: addresses are there to be checked.
  Arguments(const Operator& op, const slipway_tensor* tensors, int32_t n_tensors, const double* attributes,
            int32_t n_attributes, bool with_data);

  bool has(const char* name) const { return tensor(name).dtype != kAbsent; }
  const slipway_tensor& tensor(const char* name) const;
  template <class T = void>
  T* data(const char* name) const {  // nullptr when absent
    const slipway_tensor& t = tensor(name);
    return t.dtype == kAbsent ? nullptr : static_cast<T*>(t.data);
  }
  DType type(const char* variable_or_tensor) const;  // of a bound type variable, or of a tensor
  int64_t dim(const char* symbol) const;             // 0 when no present tensor binds it
  int64_t stride(const char* name, int axis) const { return tensor(name).strides[axis]; }
  double attribute(const char* name) const;
  int64_t integer(const char* name) const { return int64_t(attribute(name)); }

 private:
  void check_tensor(const Parameter& parameter, const slipway_tensor& tensor, bool with_data);
  void check_shape(const Parameter& parameter, const slipway_tensor& tensor);

  const Operator& op_;
  const slipway_tensor* tensors_;
  const double* attributes_;
  std::map<std::string, DType> types_;
  std::map<std::string, int64_t> dims_;
};

struct Operator {
  const char* name;
  const char* meaning;
  std::map<std::string, std::vector<DType>> types;  // type variables
  std::vector<Parameter> parameters;
  std::vector<Attribute> attributes;
  int64_t (*workspace_bytes)(const Arguments&);
  void (*run)(const Arguments&, void* workspace, void* stream);
  // What the symbols cannot say, in words for people: "head_dim: a multiple of 8, at most 256".
  std::vector<const char*> limits = {};
};

const std::vector<const Operator*>& operators();  // in order of their names
struct Registration {
  explicit Registration(const Operator& op);
};
#define REGISTER_OPERATOR(op) static const ::slipway::Registration registration_of_##op(op);

inline int64_t no_workspace(const Arguments&) { return 0; }

// Throws Invalid with the words, printf-like, unless `condition`.
__attribute__((format(printf, 2, 3))) void require(bool condition, const char* format, ...);
[[noreturn]] __attribute__((format(printf, 1, 2))) void unsupported(const char* format, ...);

constexpr int64_t kWorkspaceAlignment = 256;
// Deals out parts of the workspace, each aligned; with a null base it only adds up what is needed.
class WorkspaceParts {
 public:
  explicit WorkspaceParts(void* base) : base_(static_cast<char*>(base)) {}
  template <class T>
  T* take(int64_t count) {
    char* at = base_ + bytes_;  // never dereferenced when the base is null
    bytes_ += (count * int64_t(sizeof(T)) + kWorkspaceAlignment - 1) / kWorkspaceAlignment * kWorkspaceAlignment;
    return reinterpret_cast<T*>(at);
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* base_;
  int64_t bytes_ = 0;
};

}  // namespace slipway
