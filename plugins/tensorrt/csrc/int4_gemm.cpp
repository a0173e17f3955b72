// Int4Gemm: y = x W + bias with a weight of four bits. Graphs hold the weight's bytes as int8: the parser of TensorRT-RTX
// 1.7.1 makes int32 of constants of uint8.
#include "creator.hpp"

namespace slipway_tensorrt {
namespace {

using namespace nvinfer1;

constexpr int32_t kUInt8 = 2;

class Int4Gemm final : public KernelPlugin {
 public:
  static inline const Form kForm{"Int4Gemm", "weight_only_gemm", {"columns"}};

  Int4Gemm(std::vector<std::string> inputs, std::vector<Value> attributes, bool runs)
      : KernelPlugin(kForm, std::move(inputs), std::move(attributes), runs) {}
  IPluginV3* clone() noexcept override { return cloned(*this); }

 protected:
  // [rows, columns]
  void output_shape(DimsExprs const* in, DimsExprs& out, IExprBuilder& builder) const override {
    out.nbDims = 2;
    out.d[0] = in[input_place("x")].d[0];
    out.d[1] = builder.constant(integer("columns"));
  }

  int32_t element_type(const std::string& name, DataType given) const override {
    const bool packed = name == "weight" || name == "zero_point";
    return packed && given == DataType::kINT8 ? kUInt8 : KernelPlugin::element_type(name, given);
  }
};

}  // namespace

nvinfer1::IPluginCreatorInterface* int4_gemm_creator() {
  static Creator<Int4Gemm> creator;
  return &creator;
}

}  // namespace slipway_tensorrt
