#include "plugin.hpp"

#include <algorithm>
#include <new>
#include <stdexcept>

namespace slipway_tensorrt {

using namespace nvinfer1;

namespace {

template <class F, class R>
R guarded(const char* plugin, R failed, F&& body) noexcept {
  try {
    return body();
  } catch (const std::exception& error) {
    log_error(plugin, error.what());
  } catch (...) {
    log_error(plugin, "an exception of unknown type");
  }
  return failed;
}

constexpr int32_t kUInt8 = 2;
constexpr int32_t kNumbers[] = {1, 10, 3, 6, 9, kUInt8, 17, 16, 7};  // of DataType::kFLOAT to kINT64, in ONNX

void set_shape(slipway_tensor& tensor, const Dims& dims) {
  if (dims.nbDims < 0 || dims.nbDims > SLIPWAY_MAX_RANK) throw std::runtime_error("a tensor has too many axes");
  tensor.rank = dims.nbDims;
  int64_t step = 1;
  for (int axis = dims.nbDims - 1; axis >= 0; axis--) {
    tensor.shape[axis] = dims.d[axis];
    tensor.strides[axis] = step;
    step *= dims.d[axis];
  }
}

}  // namespace

IDimensionExpr const* scaled(IExprBuilder& builder, IDimensionExpr const* size, int64_t factor, int64_t divisor) {
  if (factor != 1) size = builder.operation(DimensionOperation::kPROD, *size, *builder.constant(factor));
  if (divisor != 1) size = builder.operation(DimensionOperation::kFLOOR_DIV, *size, *builder.constant(divisor));
  return size;
}

KernelPlugin::KernelPlugin(const Form& form, std::vector<std::string> inputs, std::vector<Value> attributes, bool runs)
    : form_(form),
      description_(describe(form.op)),
      input_names_(std::move(inputs)),
      attributes_(std::move(attributes)),
      runs_(runs) {
  for (const std::string& name : input_names_) {
    const int place = description_.tensor(name);
    if (place < 0 || description_.tensors[place].role == Role::kOutput)
      throw std::runtime_error("it has no input " + name);
    if (std::count(input_names_.begin(), input_names_.end(), name) > 1)
      throw std::runtime_error("input " + name + " is named twice");
    inputs_.push_back(place);
  }
  const bool parts = std::none_of(form.views.begin(), form.views.end(), [&](const char* name) { return has(name); });
  for (size_t place = 0; place < description_.tensors.size(); place++) {
    const TensorDescription& t = description_.tensors[place];
    const bool view = parts && std::any_of(form.views.begin(), form.views.end(),
                                           [&](const char* name) { return t.name == name; });
    if (t.role != Role::kOutput && !t.optional && !view && !has(t.name.c_str()))
      throw std::runtime_error("it needs the input " + t.name);
    if (t.role == Role::kOutput && !t.optional) outputs_.push_back(int(place));
  }
  for (size_t place = 0; place < description_.tensors.size(); place++)
    if (description_.tensors[place].role == Role::kInOut && has(description_.tensors[place].name.c_str()))
      outputs_.push_back(int(place));
  for (const Value& value : attributes_) {
    const bool own = std::any_of(form.own_attributes.begin(), form.own_attributes.end(),
                                 [&](const char* name) { return value.name == name; });
    if (!own && description_.attribute(value.name) < 0) throw std::runtime_error("it has no attribute " + value.name);
  }
  for (const char* name : form.own_attributes) integer(name);  // throws when it is absent
  if (description_.tensors.size() > size_t(kMaxTensors)) throw std::runtime_error("the kernel has too many tensors");
  for_kernel_ = kernel_attributes();
}

IPluginCapability* KernelPlugin::getCapabilityInterface(PluginCapabilityType type) noexcept {
  switch (type) {
    case PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
    case PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuildV2*>(this);
    case PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

int32_t KernelPlugin::configurePlugin(DynamicPluginTensorDesc const* in, int32_t, DynamicPluginTensorDesc const* out,
                                      int32_t) noexcept {
  return guarded(form_.name, -1, [&] {  // asks the kernel whether it takes such tensors
    Call call;
    fill(call, [&](int place) -> const DynamicPluginTensorDesc& {
      return place < int(inputs_.size()) ? in[place] : out[place - int(inputs_.size())];
    });
    return 0;
  });
}

size_t KernelPlugin::getWorkspaceSize(DynamicPluginTensorDesc const* in, int32_t, DynamicPluginTensorDesc const* out,
                                      int32_t) const noexcept {
  return guarded(form_.name, size_t(0), [&] {
    Call call;
    fill(call, [&](int place) -> const DynamicPluginTensorDesc& {
      return place < int(inputs_.size()) ? in[place] : out[place - int(inputs_.size())];
    });
    return size_t(call.workspace_bytes);
  });
}

int32_t KernelPlugin::getOutputDataTypes(DataType* types, int32_t outputs, DataType const* input_types,
                                         int32_t inputs) const noexcept {
  return guarded(form_.name, -1, [&] {
    if (outputs != int32_t(outputs_.size()) || inputs != int32_t(inputs_.size()))
      throw std::runtime_error("the node has another number of inputs or outputs than it names");
    for (int32_t i = 0; i < outputs; i++) {
      const TensorDescription& wanted = description_.tensors[outputs_[i]];
      const int same = input_place(wanted.name.c_str());
      types[i] = input_types[0];  // what no input decides is of the first one's type, or else float16
      if (same < 0 && allowed_type(int(inputs_.size()) + i, input_types[0]) == 0) types[i] = DataType::kHALF;
      for (int32_t j = 0; j < inputs; j++)
        if (j == same || (same < 0 && description_.tensors[inputs_[j]].type == wanted.type)) {
          types[i] = input_types[j];
          break;
        }
    }
    return 0;
  });
}

int32_t KernelPlugin::getOutputShapes(DimsExprs const* in, int32_t, DimsExprs const*, int32_t, DimsExprs* out,
                                      int32_t outputs, IExprBuilder& builder) noexcept {
  return guarded(form_.name, -1, [&] {
    for (int32_t i = 0; i < outputs; i++) {
      const int same = input_place(description_.tensors[outputs_[i]].name.c_str());
      if (same >= 0) out[i] = in[same];
      else output_shape(in, out[i], builder);
    }
    return 0;
  });
}

bool KernelPlugin::supportsFormatCombination(int32_t place, DynamicPluginTensorDesc const* tensors, int32_t inputs,
                                             int32_t outputs) noexcept {
  return guarded(form_.name, false, [&] {
    if (inputs != int32_t(inputs_.size()) || outputs != int32_t(outputs_.size())) return false;
    if (tensors[place].desc.format != TensorFormat::kLINEAR) return false;
    const int32_t type = allowed_type(place, tensors[place].desc.type);
    if (type == 0) return false;
    for (int32_t before = 0; before < place; before++)
      if (tensor(before).type == tensor(place).type && allowed_type(before, tensors[before].desc.type) != type)
        return false;
    return true;
  });
}

int32_t KernelPlugin::onShapeChange(PluginTensorDesc const*, int32_t, PluginTensorDesc const*, int32_t) noexcept {
  return 0;  // grid and workspace follow from the shapes of each call
}

int32_t KernelPlugin::enqueue(PluginTensorDesc const* in, PluginTensorDesc const* out, void const* const* inputs,
                              void* const* outputs, void* workspace, cudaStream_t stream) noexcept {
  if (!runs_) return 0;
  return guarded(form_.name, -1, [&] {
    struct Desc {
      const PluginTensorDesc& desc;
      const Dims& max;
    };
    const int n_inputs = int(inputs_.size());
    for (size_t i = 0; i < outputs_.size(); i++) {
      const std::string& name = description_.tensors[outputs_[i]].name;
      const int same = input_place(name.c_str());
      if (same >= 0 && inputs[same] != outputs[i])
        throw std::runtime_error(name + " is written in place: give the engine's input and output one address");
    }
    Call call;
    for (int place = 0; place < n_inputs; place++) call.tensors[inputs_[place]].data = const_cast<void*>(inputs[place]);
    for (size_t i = 0; i < outputs_.size(); i++) call.tensors[outputs_[i]].data = outputs[i];
    fill(call, [&](int place) {
      const PluginTensorDesc& desc = place < n_inputs ? in[place] : out[place - n_inputs];
      return Desc{desc, desc.dims};
    });
    slipway_error error;
    const int32_t code = slipway_run(form_.op, call.tensors, int32_t(description_.tensors.size()), for_kernel_.data(),
                                     int32_t(for_kernel_.size()), workspace, call.workspace_bytes, stream, &error);
    if (code != SLIPWAY_OK) throw std::runtime_error(error.message);
    return 0;
  });
}

IPluginV3* KernelPlugin::attachToContext(IPluginResourceContext*) noexcept { return clone(); }

PluginFieldCollection const* KernelPlugin::getFieldsToSerialize() noexcept {
  return guarded(form_.name, static_cast<PluginFieldCollection const*>(nullptr), [&] {
    kept_inputs_.clear();
    for (const std::string& name : input_names_) kept_inputs_ += (kept_inputs_.empty() ? "" : ",") + name;
    kept_integers_.assign(1, kStateVersion);
    kept_floats_.clear();
    for (const Value& value : attributes_) {
      if (value.integer) kept_integers_.push_back(int32_t(value.number));
      else kept_floats_.push_back(float(value.number));
    }
    kept_fields_.clear();
    kept_fields_.emplace_back("state_version", kept_integers_.data(), PluginFieldType::kINT32, 1);
    kept_fields_.emplace_back("input_names", kept_inputs_.c_str(), PluginFieldType::kCHAR, int32_t(kept_inputs_.size()) + 1);
    size_t integers = 1, floats = 0;
    for (const Value& value : attributes_) {
      const void* at = value.integer ? static_cast<const void*>(&kept_integers_[integers++]) : &kept_floats_[floats++];
      const PluginFieldType type = value.integer ? PluginFieldType::kINT32 : PluginFieldType::kFLOAT32;
      kept_fields_.emplace_back(value.name.c_str(), at, type, 1);
    }
    kept_collection_ = {int32_t(kept_fields_.size()), kept_fields_.data()};
    return static_cast<PluginFieldCollection const*>(&kept_collection_);
  });
}

int32_t KernelPlugin::element_type(const std::string&, DataType given) const {
  const auto number = size_t(given);
  return number < sizeof kNumbers / sizeof *kNumbers ? kNumbers[number] : 0;
}

int KernelPlugin::input_place(const char* name) const {
  for (size_t i = 0; i < input_names_.size(); i++)
    if (input_names_[i] == name) return int(i);
  return -1;
}

int64_t KernelPlugin::integer(const char* attribute) const {
  for (const Value& value : attributes_)
    if (value.name == attribute) return int64_t(value.number);
  const int place = description_.attribute(attribute);
  if (place < 0) throw std::runtime_error(std::string("it needs the attribute ") + attribute);
  return int64_t(description_.attributes[place].standard);
}

const TensorDescription& KernelPlugin::tensor(int place) const {
  const int inputs = int(inputs_.size());
  return description_.tensors[place < inputs ? inputs_[place] : outputs_[place - inputs]];
}

int32_t KernelPlugin::allowed_type(int place, DataType given) const {
  const TensorDescription& parameter = tensor(place);
  const int32_t type = element_type(parameter.name, given);
  const std::vector<int32_t>& allowed = description_.types.at(parameter.type);
  return std::find(allowed.begin(), allowed.end(), type) == allowed.end() ? 0 : type;
}

// Describes the call's tensors to the kernel, by their largest shapes, and asks for the workspace.
template <class Get>
void KernelPlugin::fill(Call& call, Get&& get) const {
  const int count = int(inputs_.size() + outputs_.size());
  for (slipway_tensor& tensor : call.tensors) tensor.dtype = 0, tensor.rank = 0;
  for (int place = 0; place < count; place++) {
    const auto& given = get(place);
    slipway_tensor& one = call.tensors[place < int(inputs_.size()) ? inputs_[place] : outputs_[place - inputs_.size()]];
    one.dtype = element_type(tensor(place).name, given.desc.type);
    set_shape(one, given.max);
  }
  arrange(call.tensors);
  slipway_error error;
  const int32_t code = slipway_workspace_bytes(form_.op, call.tensors, int32_t(description_.tensors.size()),
                                               for_kernel_.data(), int32_t(for_kernel_.size()), &call.workspace_bytes,
                                               &error);
  if (code != SLIPWAY_OK) throw std::runtime_error(error.message);
}

std::vector<double> KernelPlugin::kernel_attributes() const {
  std::vector<double> values;
  for (const AttributeDescription& attribute : description_.attributes) {
    values.push_back(attribute.standard);
    for (const Value& value : attributes_)
      if (value.name == attribute.name) values.back() = value.number;
  }
  return values;
}

}  // namespace slipway_tensorrt
