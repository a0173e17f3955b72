// Makes plugins of one kind from the attributes of a node, or from what an engine kept of them.
#pragma once
#include <string>
#include <vector>

#include "plugin.hpp"

namespace slipway_tensorrt {

struct Fields {
  std::vector<std::string> inputs;
  std::vector<Value> attributes;
};
// Throws std::runtime_error for state of another version, and for fields that it does not understand.
Fields read_fields(nvinfer1::PluginFieldCollection const& given);
// Names of all fields of a plugin, for TensorRT's parser.
std::vector<nvinfer1::PluginField> field_names(const Form& form);

template <class Plugin>
class Creator final : public nvinfer1::IPluginCreatorV3One {
 public:
  nvinfer1::IPluginV3* createPlugin(nvinfer1::AsciiChar const* name, nvinfer1::PluginFieldCollection const* fields,
                                    nvinfer1::TensorRTPhase phase) noexcept override {
    try {
      Fields read = read_fields(*fields);
      const bool runs = phase == nvinfer1::TensorRTPhase::kRUNTIME;
      return new Plugin(std::move(read.inputs), std::move(read.attributes), runs);
    } catch (const std::exception& error) {
      log_error(name ? name : Plugin::kForm.name, error.what());
      return nullptr;
    }
  }

  nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override {
    try {
      if (names_.empty()) names_ = field_names(Plugin::kForm);
      collection_ = {int32_t(names_.size()), names_.data()};
      return &collection_;
    } catch (const std::exception& error) {
      log_error(Plugin::kForm.name, error.what());
      return nullptr;
    }
  }

  nvinfer1::AsciiChar const* getPluginName() const noexcept override { return Plugin::kForm.name; }
  nvinfer1::AsciiChar const* getPluginVersion() const noexcept override { return kVersion; }
  nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override { return kNamespace; }

 private:
  std::vector<nvinfer1::PluginField> names_;
  nvinfer1::PluginFieldCollection collection_{};
};

template <class Plugin>
nvinfer1::IPluginV3* cloned(const Plugin& plugin) noexcept {
  try {
    return new Plugin(plugin);
  } catch (const std::exception& error) {
    log_error(Plugin::kForm.name, error.what());
    return nullptr;
  }
}

// One creator of each plugin, defined in the plugin's file.
nvinfer1::IPluginCreatorInterface* paged_attention_creator();
nvinfer1::IPluginCreatorInterface* flash_attention_creator();
nvinfer1::IPluginCreatorInterface* int4_gemm_creator();

}  // namespace slipway_tensorrt
