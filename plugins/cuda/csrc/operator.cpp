#include "operator.hpp"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <utility>

namespace slipway {
namespace {

struct Name {
  DType dtype;
  const char* name;
  int bytes;
};
constexpr Name kNames[] = {
    {kFloat32, "float32", 4}, {kUInt8, "uint8", 1},     {kInt8, "int8", 1},         {kInt16, "int16", 2},
    {kInt32, "int32", 4},     {kInt64, "int64", 8},     {kBool, "bool", 1},         {kFloat16, "float16", 2},
    {kUInt32, "uint32", 4},   {kUInt64, "uint64", 8},   {kBFloat16, "bfloat16", 2}, {kFloat8E4M3, "float8e4m3fn", 1},
};

std::string formatted(const char* format, va_list arguments) {
  char text[1024];
  std::vsnprintf(text, sizeof text, format, arguments);
  return text;
}

std::string joined(const std::vector<std::string>& parts, const char* between) {
  std::string text;
  for (size_t i = 0; i < parts.size(); i++) text += (i ? between : "") + parts[i];
  return text;
}

std::string shape_text(const slipway_tensor& tensor) {
  std::vector<std::string> axes;
  for (int i = 0; i < tensor.rank; i++) axes.push_back(std::to_string(tensor.shape[i]));
  return "[" + joined(axes, ", ") + "]";
}

// The types that a parameter may have.
std::vector<DType> allowed_types(const Operator& op, const char* type) {
  auto variable = op.types.find(type);
  if (variable != op.types.end()) return variable->second;
  for (const Name& name : kNames)
    if (!std::strcmp(name.name, type)) return {name.dtype};
  throw std::logic_error(std::string(op.name) + " describes a parameter of unknown type " + type);
}

// An axis of a description: factor * symbol / divisor + offset, or a number (no symbol).
struct Axis {
  std::string symbol;
  int64_t factor = 1, divisor = 1, offset = 0;
};
Axis parse_axis(std::string text) {
  Axis axis;
  size_t at = text.find('+');
  if (at != std::string::npos) axis.offset = std::stoll(text.substr(at + 1)), text.resize(at);
  at = text.find('/');
  if (at != std::string::npos) axis.divisor = std::stoll(text.substr(at + 1)), text.resize(at);
  at = text.find('*');
  if (at != std::string::npos) axis.factor = std::stoll(text.substr(0, at)), text = text.substr(at + 1);
  if (std::isdigit(static_cast<unsigned char>(text[0]))) axis.offset += std::stoll(text), axis.factor = 0;
  else axis.symbol = text;
  return axis;
}

std::vector<const Operator*>& registry() {
  static std::vector<const Operator*> all;
  return all;
}

}  // namespace

const char* dtype_name(int32_t dtype) {
  for (const Name& name : kNames)
    if (name.dtype == dtype) return name.name;
  thread_local char text[32];
  std::snprintf(text, sizeof text, "dtype %d", dtype);
  return text;
}

int64_t dtype_bytes(int32_t dtype) {
  for (const Name& name : kNames)
    if (name.dtype == dtype) return name.bytes;
  return 0;
}

void require(bool condition, const char* format, ...) {
  if (condition) return;
  va_list arguments;
  va_start(arguments, format);
  std::string text = formatted(format, arguments);
  va_end(arguments);
  throw Invalid(text);
}

void unsupported(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::string text = formatted(format, arguments);
  va_end(arguments);
  throw Unsupported(text);
}

const std::vector<const Operator*>& operators() { return registry(); }

Registration::Registration(const Operator& op) {
  auto& all = registry();
  auto place = std::find_if(all.begin(), all.end(),
                            [&](const Operator* other) { return std::strcmp(op.name, other->name) < 0; });
  all.insert(place, &op);
}

Arguments::Arguments(const Operator& op, const slipway_tensor* tensors, int32_t n_tensors, const double* attributes,
                     int32_t n_attributes, bool with_data)
    : op_(op), tensors_(tensors), attributes_(attributes) {
  require(n_tensors == int32_t(op.parameters.size()), "%d tensors given; %s takes %zu (absent ones as dtype 0)",
          n_tensors, op.name, op.parameters.size());
  require(n_attributes == int32_t(op.attributes.size()), "%d attributes given; %s takes %zu", n_attributes, op.name,
          op.attributes.size());
  require(tensors != nullptr || n_tensors == 0, "tensors is NULL");
  require(attributes != nullptr || n_attributes == 0, "attributes is NULL");
  for (int i = 0; i < n_attributes; i++) {
    const Attribute& a = op.attributes[i];
    const double value = attributes[i];
    require(value >= a.least && value <= a.most, "%s is %g; allowed are %g to %g", a.name, value, a.least, a.most);
    require(!a.integer || value == std::floor(value), "%s is %g; it must be a whole number", a.name, value);
  }
  for (int i = 0; i < n_tensors; i++) check_tensor(op.parameters[i], tensors[i], with_data);
  for (int i = 0; i < n_tensors; i++)
    if (tensors[i].dtype != kAbsent) check_shape(op.parameters[i], tensors[i]);
}

void Arguments::check_tensor(const Parameter& p, const slipway_tensor& t, bool with_data) {
  if (t.dtype == kAbsent) {
    require(p.optional, "%s is absent; %s needs it", p.name, op_.name);
    return;
  }
  const std::vector<DType> allowed = allowed_types(op_, p.type);
  if (std::find(allowed.begin(), allowed.end(), t.dtype) == allowed.end()) {
    std::vector<std::string> names;
    for (DType type : allowed) names.push_back(dtype_name(type));
    require(false, "%s is %s; allowed: %s", p.name, dtype_name(t.dtype), joined(names, ", ").c_str());
  }
  auto [bound, is_new] = types_.try_emplace(p.type, DType(t.dtype));
  require(is_new || bound->second == t.dtype, "%s is %s, but another tensor of type %s is %s; they must be the same",
          p.name, std::string(dtype_name(t.dtype)).c_str(), p.type, dtype_name(bound->second));
  require(t.rank == int32_t(p.shape.size()), "%s has rank %d; it must have rank %zu: [%s]", p.name, t.rank,
          p.shape.size(), joined(p.shape, ", ").c_str());
  int64_t elements = 1;
  for (int i = 0; i < t.rank; i++) {
    require(t.shape[i] >= 0, "%s has a negative size on axis %d: %lld", p.name, i, (long long)t.shape[i]);
    elements *= t.shape[i];
  }
  if (elements == 0) return;
  int64_t contiguous = 1;
  for (int i = t.rank - 1; i >= 0; i--) {
    const bool free = p.strided && i < t.rank - 1;
    require(free || t.shape[i] == 1 || t.strides[i] == contiguous,
            "%s has stride %lld on axis %d; it must be %lld%s", p.name, (long long)t.strides[i], i,
            (long long)contiguous, p.strided ? "" : " (contiguous)");
    require(!free || t.shape[i] == 1 || t.strides[i] >= 0, "%s has a negative stride on axis %d", p.name, i);
    contiguous *= t.shape[i];
  }
  if (!with_data) return;
  require(t.data != nullptr, "%s is a null pointer, but has %lld elements", p.name, (long long)elements);
  require(reinterpret_cast<uintptr_t>(t.data) % 16 == 0, "%s lies at %p; it must be aligned to 16 bytes", p.name,
          t.data);
}

void Arguments::check_shape(const Parameter& p, const slipway_tensor& t) {
  for (int i = 0; i < t.rank; i++) {
    std::string text = p.shape[i];
    const int64_t size = t.shape[i];
    if (text.rfind("1|", 0) == 0) {
      if (size == 1) continue;
      text = text.substr(2);
    }
    const Axis axis = parse_axis(text);
    if (axis.factor == 0) {
      require(size == axis.offset, "%s is %s; axis %d must be %s", p.name, shape_text(t).c_str(), i, text.c_str());
      continue;
    }
    const int64_t scaled = (size - axis.offset) * axis.divisor;
    require(scaled >= 0 && scaled % axis.factor == 0, "%s is %s; axis %d must be %s", p.name, shape_text(t).c_str(), i,
            text.c_str());
    auto [bound, is_new] = dims_.try_emplace(axis.symbol, scaled / axis.factor);
    require(is_new || bound->second * axis.factor / axis.divisor + axis.offset == size,
            "%s is %s; axis %d must be %s, and %s is %lld", p.name, shape_text(t).c_str(), i, text.c_str(),
            axis.symbol.c_str(), (long long)bound->second);
  }
}

const slipway_tensor& Arguments::tensor(const char* name) const {
  for (size_t i = 0; i < op_.parameters.size(); i++)
    if (!std::strcmp(op_.parameters[i].name, name)) return tensors_[i];
  throw std::logic_error(std::string(op_.name) + " has no tensor " + name);
}

DType Arguments::type(const char* name) const {
  auto bound = types_.find(name);
  if (bound != types_.end()) return bound->second;
  if (op_.types.count(name)) return kAbsent;
  return DType(tensor(name).dtype);
}

int64_t Arguments::dim(const char* symbol) const {
  auto bound = dims_.find(symbol);
  return bound == dims_.end() ? 0 : bound->second;
}

double Arguments::attribute(const char* name) const {
  for (size_t i = 0; i < op_.attributes.size(); i++)
    if (!std::strcmp(op_.attributes[i].name, name)) return attributes_[i];
  throw std::logic_error(std::string(op_.name) + " has no attribute " + name);
}

}  // namespace slipway
