#include "creator.hpp"

#include <cstring>
#include <stdexcept>

namespace slipway_tensorrt {

using namespace nvinfer1;

namespace {

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts(1);
  for (char c : text) {
    if (c == '\0') break;
    if (c == ',') parts.emplace_back();
    else parts.back() += c;
  }
  return parts;
}

Value number(const PluginField& field) {
  if (field.length != 1) throw std::runtime_error(std::string(field.name) + " is no single number");
  switch (field.type) {
    case PluginFieldType::kINT32: return {field.name, double(*static_cast<const int32_t*>(field.data)), true};
    case PluginFieldType::kINT64: return {field.name, double(*static_cast<const int64_t*>(field.data)), true};
    case PluginFieldType::kFLOAT32: return {field.name, double(*static_cast<const float*>(field.data)), false};
    case PluginFieldType::kFLOAT64: return {field.name, *static_cast<const double*>(field.data), false};
    default: throw std::runtime_error(std::string(field.name) + " is no number");
  }
}

}  // namespace

Fields read_fields(PluginFieldCollection const& given) {
  Fields result;
  bool named = false;
  for (int32_t i = 0; i < given.nbFields; i++) {
    const PluginField& field = given.fields[i];
    const std::string name = field.name;
    if (name == "plugin_version" || name == "plugin_namespace") continue;
    if (name == "input_names") {
      result.inputs = split(std::string(static_cast<const char*>(field.data), size_t(field.length)));
      named = true;
    } else if (name == "state_version") {
      const double version = number(field).number;
      if (version != kStateVersion)
        throw std::runtime_error("its state has version " + std::to_string(int(version)) + "; this library reads " +
                                 std::to_string(kStateVersion) + ": build the engine again");
    } else {
      result.attributes.push_back(number(field));
    }
  }
  if (!named) throw std::runtime_error("it has no attribute input_names, the names of its inputs");
  return result;
}

std::vector<PluginField> field_names(const Form& form) {
  std::vector<PluginField> names;
  names.emplace_back("input_names", nullptr, PluginFieldType::kCHAR, 0);
  names.emplace_back("state_version", nullptr, PluginFieldType::kINT32, 1);
  for (const AttributeDescription& attribute : describe(form.op).attributes)
    names.emplace_back(attribute.name.c_str(), nullptr,
                       attribute.integer ? PluginFieldType::kINT32 : PluginFieldType::kFLOAT32, 1);
  for (const char* name : form.own_attributes) names.emplace_back(name, nullptr, PluginFieldType::kINT32, 1);
  return names;
}

}  // namespace slipway_tensorrt
