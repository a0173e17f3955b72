// FlashAttention: attention of packed sequences without a cache. Rows hold all heads side by side, query, key and value
// too when the latter two are absent; the kernel gets heads as parts of these rows.
#include "creator.hpp"

namespace slipway_tensorrt {
namespace {

using namespace nvinfer1;

// Columns from `column` on of rows [tokens, columns] as [tokens, heads, size].
slipway_tensor by_heads(const slipway_tensor& rows, int64_t heads, int64_t size, int64_t column, int64_t bytes) {
  slipway_tensor result = rows;
  if (rows.data != nullptr) result.data = static_cast<char*>(rows.data) + column * bytes;
  result.rank = 3;
  result.shape[1] = heads, result.shape[2] = size;
  result.strides[1] = size, result.strides[2] = 1;
  return result;
}

constexpr int32_t kFloat8E4M3 = 17;

class FlashAttention final : public KernelPlugin {
 public:
  static inline const Form kForm{"FlashAttention", "flash_attention", {"num_heads", "kv_num_heads"}, {"key", "value"}};

  FlashAttention(std::vector<std::string> inputs, std::vector<Value> attributes, bool runs)
      : KernelPlugin(kForm, std::move(inputs), std::move(attributes), runs) {}
  IPluginV3* clone() noexcept override { return cloned(*this); }

 protected:
  // [tokens, num_heads * value_dim]
  void output_shape(DimsExprs const* in, DimsExprs& out, IExprBuilder& builder) const override {
    const int64_t heads = integer("num_heads"), kv_heads = integer("kv_num_heads");
    const DimsExprs& query = in[input_place("query")];
    out.nbDims = 2;
    out.d[0] = query.d[0];
    out.d[1] = has("value") ? scaled(builder, in[input_place("value")].d[1], heads, kv_heads)
                            : scaled(builder, query.d[1], heads, heads + 2 * kv_heads);
  }

  void arrange(slipway_tensor* tensors) const override {
    const int64_t heads = integer("num_heads"), kv_heads = integer("kv_num_heads");
    slipway_tensor &query = tensors[description().tensor("query")], &key = tensors[description().tensor("key")],
                   &value = tensors[description().tensor("value")], &output = tensors[description().tensor("output")];
    const int64_t bytes = query.dtype == kFloat8E4M3 ? 1 : 2;
    if (has("key")) {
      key = by_heads(key, kv_heads, key.shape[1] / kv_heads, 0, bytes);
      value = by_heads(value, kv_heads, value.shape[1] / kv_heads, 0, bytes);
      query = by_heads(query, heads, query.shape[1] / heads, 0, bytes);
    } else {
      const slipway_tensor rows = query;
      const int64_t size = rows.shape[1] / (heads + 2 * kv_heads);
      query = by_heads(rows, heads, size, 0, bytes);
      key = by_heads(rows, kv_heads, size, heads * size, bytes);
      value = by_heads(rows, kv_heads, size, (heads + kv_heads) * size, bytes);
    }
    output = by_heads(output, heads, output.shape[1] / heads, 0, bytes);
  }
};

}  // namespace

nvinfer1::IPluginCreatorInterface* flash_attention_creator() {
  static Creator<FlashAttention> creator;
  return &creator;
}

}  // namespace slipway_tensorrt
