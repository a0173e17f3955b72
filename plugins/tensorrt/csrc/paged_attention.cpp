// PagedAttention: rotary embedding, writing of new keys and values, and attention through the block table.
#include "creator.hpp"

namespace slipway_tensorrt {
namespace {

using namespace nvinfer1;

class PagedAttention final : public KernelPlugin {
 public:
  static inline const Form kForm{"PagedAttention", "paged_attention"};

  PagedAttention(std::vector<std::string> inputs, std::vector<Value> attributes, bool runs)
      : KernelPlugin(kForm, std::move(inputs), std::move(attributes), runs) {}
  IPluginV3* clone() noexcept override { return cloned(*this); }

 protected:
  // [tokens, num_heads * value_dim]
  void output_shape(DimsExprs const* in, DimsExprs& out, IExprBuilder& builder) const override {
    out.nbDims = 2;
    out.d[0] = in[input_place("query")].d[0];
    out.d[1] = scaled(builder, in[input_place("value_cache")].d[3], integer("num_heads"));
  }
};

}  // namespace

nvinfer1::IPluginCreatorInterface* paged_attention_creator() {
  static Creator<PagedAttention> creator;
  return &creator;
}

}  // namespace slipway_tensorrt
