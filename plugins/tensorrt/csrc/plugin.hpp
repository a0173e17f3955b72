// What every plugin says of itself, from the kernels' own description: types, shapes, workspace, and the call.
#pragma once
#include <NvInferRuntime.h>

#include <string>
#include <vector>

#include "description.hpp"
#include "slipway_kernels.h"

namespace slipway_tensorrt {

constexpr const char* kNamespace = "slipway";
constexpr const char* kVersion = "1";
constexpr int32_t kStateVersion = 1;  // of what an engine keeps of a plugin
constexpr int kMaxTensors = 40;

// To TensorRT's own logger, once setLoggerFinder has named it.
void log_error(const char* plugin, const char* message) noexcept;

// What distinguishes one plugin from another.
struct Form {
  const char* name;
  const char* op;                                // of the kernels' library
  std::vector<const char*> own_attributes = {};  // whole numbers that are needed beyond the kernel's attributes
  std::vector<const char*> views = {};           // required tensors of the kernel that may be parts of others
};

// An attribute as a node, or an engine's state, gives it.
struct Value {
  std::string name;
  double number;
  bool integer;
};

class KernelPlugin : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuildV2,
                     public nvinfer1::IPluginV3OneRuntime {
 public:
  // inputs: the kernel's names of the node's inputs. runs: whether the plugin belongs to an engine. The builder's own
  // calls find any content in the buffers, lengths and block numbers too (NVIDIA/TensorRT#2552), so a plugin of the
  // build phase leaves them alone. Throws std::runtime_error for inputs or attributes that the kernel has not, or needs.
  KernelPlugin(const Form& form, std::vector<std::string> inputs, std::vector<Value> attributes, bool runs);

  nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;

  nvinfer1::AsciiChar const* getPluginName() const noexcept override { return form_.name; }
  nvinfer1::AsciiChar const* getPluginVersion() const noexcept override { return kVersion; }
  nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override { return kNamespace; }

  int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, int32_t inputs,
                          nvinfer1::DynamicPluginTensorDesc const* out, int32_t outputs) noexcept override;
  int32_t getOutputDataTypes(nvinfer1::DataType* types, int32_t outputs, nvinfer1::DataType const* input_types,
                             int32_t inputs) const noexcept override;
  int32_t getOutputShapes(nvinfer1::DimsExprs const* in, int32_t inputs, nvinfer1::DimsExprs const* shape_inputs,
                          int32_t n_shape_inputs, nvinfer1::DimsExprs* out, int32_t outputs,
                          nvinfer1::IExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(int32_t place, nvinfer1::DynamicPluginTensorDesc const* tensors, int32_t inputs,
                                 int32_t outputs) noexcept override;
  int32_t getNbOutputs() const noexcept override { return int32_t(outputs_.size()); }
  size_t getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* in, int32_t inputs,
                          nvinfer1::DynamicPluginTensorDesc const* out, int32_t outputs) const noexcept override;

  int32_t onShapeChange(nvinfer1::PluginTensorDesc const* in, int32_t inputs, nvinfer1::PluginTensorDesc const* out,
                        int32_t outputs) noexcept override;
  int32_t enqueue(nvinfer1::PluginTensorDesc const* in, nvinfer1::PluginTensorDesc const* out,
                  void const* const* inputs, void* const* outputs, void* workspace,
                  cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
  nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override;

 protected:
  // The shape of the one output that is not in place. `in`: of the node's inputs.
  virtual void output_shape(nvinfer1::DimsExprs const* in, nvinfer1::DimsExprs& out,
                            nvinfer1::IExprBuilder& builder) const = 0;
  // TensorRT's tensors, in the order of the description, as the kernel takes them: other views of the same memory.
  virtual void arrange(slipway_tensor*) const {}
  // What the kernel is told of a tensor of TensorRT's type `given`; 0 when there is no such type.
  virtual int32_t element_type(const std::string& name, nvinfer1::DataType given) const;

  bool has(const char* name) const { return input_place(name) >= 0; }
  int input_place(const char* name) const;  // among the node's inputs, -1 when it is not one
  int64_t integer(const char* attribute) const;
  const Description& description() const { return description_; }

 private:
  struct Call {
    slipway_tensor tensors[kMaxTensors];
    int64_t workspace_bytes;
  };
  const TensorDescription& tensor(int place) const;  // of inputs, then outputs
  int32_t allowed_type(int place, nvinfer1::DataType given) const;
  template <class Get>
  void fill(Call& call, Get&& get) const;
  std::vector<double> kernel_attributes() const;

  const Form& form_;
  const Description& description_;
  std::vector<std::string> input_names_;
  std::vector<Value> attributes_;
  bool runs_;
  std::vector<int> inputs_, outputs_;   // places in the description
  std::vector<double> for_kernel_;      // attributes in the kernel's order
  // What getFieldsToSerialize points to.
  std::string kept_inputs_;
  std::vector<int32_t> kept_integers_;
  std::vector<float> kept_floats_;
  std::vector<nvinfer1::PluginField> kept_fields_;
  nvinfer1::PluginFieldCollection kept_collection_{};
};

// Builds the sizes of outputs.
nvinfer1::IDimensionExpr const* scaled(nvinfer1::IExprBuilder& builder, nvinfer1::IDimensionExpr const* size,
                                       int64_t factor, int64_t divisor = 1);

}  // namespace slipway_tensorrt
