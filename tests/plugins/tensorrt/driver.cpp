// Calls a library of plugins as TensorRT does, for tests that load this one through ctypes: all of a plugin's host side,
// and enqueue on memory of the CPU where the kernels are the emulated ones.
#include <NvInferRuntime.h>

#include <cstring>
#include <deque>
#include <string>

using namespace nvinfer1;

extern "C" IPluginCreatorInterface* const* getCreators(int32_t& count);
extern "C" void setLoggerFinder(ILoggerFinder* finder);

namespace {

struct Tensor {
  int32_t type;
  int32_t format;
  void* data;
  Dims dims;
};

struct Logger final : ILogger {
  void log(Severity, AsciiChar const* words) noexcept override { said = words; }
  std::string said;
};
Logger logger;

struct Finder final : ILoggerFinder {
  ILogger* findLogger() override { return &logger; }
};

struct Size final : IDimensionExpr {
  struct Known final : apiv::VDimensionExpr {
    bool isConstant() const override { return true; }
    int64_t getConstantValue() const override { return value; }
    bool isSizeTensor() const override { return false; }
    int64_t value = 0;
  } known;
  explicit Size(int64_t value) {
    known.value = value;
    mImpl = &known;
  }
};

struct Builder final : IExprBuilder {
  struct Sizes final : apiv::VExprBuilder {
    std::deque<Size> made;
    IDimensionExpr const* constant(int64_t value) override { return &made.emplace_back(value); }
    IDimensionExpr const* operation(DimensionOperation op, IDimensionExpr const& a, IDimensionExpr const& b) override {
      const int64_t x = a.getConstantValue(), y = b.getConstantValue();
      return constant(op == DimensionOperation::kPROD ? x * y : op == DimensionOperation::kFLOOR_DIV ? x / y : -1);
    }
    IDimensionExpr const* declareSizeTensor(int32_t, IDimensionExpr const&, IDimensionExpr const&) override {
      return nullptr;
    }
  } sizes;
  Builder() { mImpl = &sizes; }
};

constexpr int kMost = 64;

IPluginCreatorV3One* creator(const char* name) {
  static Finder finder;
  setLoggerFinder(&finder);
  int32_t count = 0;
  IPluginCreatorInterface* const* all = getCreators(count);
  for (int32_t i = 0; i < count; i++) {
    auto* one = static_cast<IPluginCreatorV3One*>(all[i]);
    const bool versioned = !std::strcmp(one->getPluginVersion(), "1") && !std::strcmp(one->getPluginNamespace(), "slipway");
    if (!std::strcmp(one->getPluginName(), name) && versioned) return one;
  }
  return nullptr;
}

template <class T>
T* part(IPluginV3* plugin, PluginCapabilityType type) {
  return static_cast<T*>(plugin->getCapabilityInterface(type));
}
IPluginV3OneBuildV2* build_part(IPluginV3* p) { return part<IPluginV3OneBuildV2>(p, PluginCapabilityType::kBUILD); }
IPluginV3OneRuntime* run_part(IPluginV3* p) { return part<IPluginV3OneRuntime>(p, PluginCapabilityType::kRUNTIME); }

PluginTensorDesc described(const Tensor& tensor) {
  return {tensor.dims, DataType(tensor.type), TensorFormat(tensor.format), 1.0f};
}

struct Described {
  DynamicPluginTensorDesc all[kMost];
  Described(const Tensor* tensors, int32_t count) {
    for (int32_t i = 0; i < count; i++) all[i] = {described(tensors[i]), tensors[i].dims, tensors[i].dims, tensors[i].dims};
  }
};

}  // namespace

extern "C" {

const char* last_words() { return logger.said.c_str(); }

int32_t field_count(const char* name) { return creator(name)->getFieldNames()->nbFields; }
const char* field_name(const char* name, int32_t place) { return creator(name)->getFieldNames()->fields[place].name; }

void* plugin_create(const char* name, const PluginField* fields, int32_t count, int32_t phase) {
  logger.said.clear();
  PluginFieldCollection given{count, fields};
  return creator(name)->createPlugin("a node", &given, TensorRTPhase(phase));
}

// What an engine does: keeps the plugin's state, makes another one of it, and gives each context its own.
void* plugin_reload(void* plugin) {
  auto* made = static_cast<IPluginV3*>(plugin);
  const char* name = part<IPluginV3OneCore>(made, PluginCapabilityType::kCORE)->getPluginName();
  IPluginV3* copy = made->clone();
  PluginFieldCollection const* state = run_part(copy)->getFieldsToSerialize();
  IPluginV3* loaded = creator(name)->createPlugin("an engine", state, TensorRTPhase::kRUNTIME);
  delete copy;
  if (loaded == nullptr) return nullptr;
  IPluginV3* attached = run_part(loaded)->attachToContext(nullptr);
  delete loaded;
  return attached;
}

void plugin_delete(void* plugin) { delete static_cast<IPluginV3*>(plugin); }

int32_t plugin_outputs(void* plugin) { return build_part(static_cast<IPluginV3*>(plugin))->getNbOutputs(); }

int32_t plugin_takes(void* plugin, int32_t place, const Tensor* tensors, int32_t inputs, int32_t outputs) {
  Described given(tensors, inputs + outputs);
  return build_part(static_cast<IPluginV3*>(plugin))->supportsFormatCombination(place, given.all, inputs, outputs);
}

// Fills types and shapes of the outputs, which come after the inputs.
int32_t plugin_results(void* plugin, Tensor* tensors, int32_t inputs, int32_t outputs) {
  auto* build = build_part(static_cast<IPluginV3*>(plugin));
  DataType types[kMost], made[kMost];
  DimsExprs shapes[kMost], results[kMost];
  Builder builder;
  for (int32_t i = 0; i < inputs; i++) {
    types[i] = DataType(tensors[i].type);
    shapes[i].nbDims = tensors[i].dims.nbDims;
    for (int axis = 0; axis < tensors[i].dims.nbDims; axis++)
      shapes[i].d[axis] = builder.sizes.constant(tensors[i].dims.d[axis]);
  }
  if (build->getOutputDataTypes(made, outputs, types, inputs) != 0) return -1;
  if (build->getOutputShapes(shapes, inputs, nullptr, 0, results, outputs, builder) != 0) return -1;
  for (int32_t i = 0; i < outputs; i++) {
    Tensor& result = tensors[inputs + i];
    result.type = int32_t(made[i]);
    result.dims.nbDims = results[i].nbDims;
    for (int axis = 0; axis < results[i].nbDims; axis++) result.dims.d[axis] = results[i].d[axis]->getConstantValue();
  }
  return 0;
}

int32_t plugin_configure(void* plugin, const Tensor* tensors, int32_t inputs, int32_t outputs) {
  Described given(tensors, inputs + outputs);
  return build_part(static_cast<IPluginV3*>(plugin))->configurePlugin(given.all, inputs, given.all + inputs, outputs);
}

int64_t plugin_workspace(void* plugin, const Tensor* tensors, int32_t inputs, int32_t outputs) {
  Described given(tensors, inputs + outputs);
  auto* build = build_part(static_cast<IPluginV3*>(plugin));
  return int64_t(build->getWorkspaceSize(given.all, inputs, given.all + inputs, outputs));
}

int32_t plugin_enqueue(void* plugin, const Tensor* tensors, int32_t inputs, int32_t outputs, void* workspace) {
  logger.said.clear();
  PluginTensorDesc descs[kMost];
  const void* in[kMost];
  void* out[kMost];
  for (int32_t i = 0; i < inputs + outputs; i++) descs[i] = described(tensors[i]);
  for (int32_t i = 0; i < inputs; i++) in[i] = tensors[i].data;
  for (int32_t i = 0; i < outputs; i++) out[i] = tensors[inputs + i].data;
  auto* run = run_part(static_cast<IPluginV3*>(plugin));
  if (run->onShapeChange(descs, inputs, descs + inputs, outputs) != 0) return -1;
  return run->enqueue(descs, descs + inputs, in, out, workspace, nullptr);
}

}  // extern "C"
