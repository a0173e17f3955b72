#include "description.hpp"

#include <mutex>

#include "json.hpp"
#include "slipway_kernels.h"

namespace slipway_tensorrt {
namespace {

const std::map<std::string, int32_t> kTypes = {
    {"float32", 1}, {"uint8", 2},    {"int8", 3},   {"int16", 5},   {"int32", 6},     {"int64", 7},
    {"bool", 9},    {"float16", 10}, {"uint32", 12}, {"uint64", 13}, {"bfloat16", 16}, {"float8e4m3fn", 17},
};

int32_t type_number(const std::string& name) {
  auto found = kTypes.find(name);
  if (found == kTypes.end()) throw std::runtime_error("the kernels' description has an unknown type " + name);
  return found->second;
}

Role role_of(const std::string& name) {
  return name == "input" ? Role::kInput : name == "output" ? Role::kOutput : Role::kInOut;
}

Description parsed(const char* text) {
  const Json json = JsonReader(text).read();
  Description result;
  for (const auto& [variable, names] : json.at("types").members)
    for (const Json& name : names.items) result.types[variable].push_back(type_number(name.text));
  for (const Json& tensor : json.at("tensors").items) {
    const std::string& type = tensor.at("type").text;
    if (!result.types.count(type)) result.types[type] = {type_number(type)};
    result.tensors.push_back({tensor.at("name").text, role_of(tensor.at("role").text),
                              tensor.at("optional").number != 0, type, tensor.at("shape").items.size()});
  }
  for (const Json& attribute : json.at("attributes").items)
    result.attributes.push_back(
        {attribute.at("name").text, attribute.at("default").number, attribute.at("integer").number != 0});
  return result;
}

template <class Items>
int place_of(const Items& items, const std::string& name) {
  for (size_t i = 0; i < items.size(); i++)
    if (items[i].name == name) return int(i);
  return -1;
}

}  // namespace

int Description::tensor(const std::string& name) const { return place_of(tensors, name); }
int Description::attribute(const std::string& name) const { return place_of(attributes, name); }

const Description& describe(const char* op) {
  static std::mutex mutex;
  static std::map<std::string, Description> known;
  std::lock_guard<std::mutex> lock(mutex);
  auto found = known.find(op);
  if (found == known.end()) {
    const char* text = slipway_describe(op);
    if (text == nullptr) throw std::runtime_error(std::string("the kernels' library has no operator ") + op);
    found = known.emplace(op, parsed(text)).first;
  }
  return found->second;
}

}  // namespace slipway_tensorrt
