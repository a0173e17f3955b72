// The library's door: registers the operators of domain `slipway` with ONNX Runtime.
#include <exception>
#include <string>

#include "ort_entries.h"
#include "packed_ops.h"
#include "paged_attention_op.h"

namespace slipway::cpu {
namespace {

using namespace slipway::ort;

// Runs f and turns what it throws into a status: no exception crosses into ONNX Runtime.
template <class F>
Status* guarded(const Api& api, const char* operator_name, F&& f) {
  try {
    f();
    return nullptr;
  } catch (const Failed& failed) {
    return failed.status;
  } catch (const InvalidArgument& error) {
    return api.CreateStatus()(kInvalidArgument,
                              ("slipway::" + std::string(operator_name) + ": " + error.what()).c_str());
  } catch (const std::exception& error) {  // no memory
    return api.CreateStatus()(kFail,
                              ("slipway::" + std::string(operator_name) + ": " + error.what()).c_str());
  }
}

// Absent attributes keep their default.
int64_t attribute(const Api& api, const KernelInfo* info, const char* name, int64_t fallback) {
  int64_t value = fallback;
  if (Status* status = api.KernelInfoGetAttribute_int64()(info, name, &value)) {
    api.ReleaseStatus()(status);
    return fallback;
  }
  return value;
}

float attribute(const Api& api, const KernelInfo* info, const char* name, float fallback) {
  float value = fallback;
  if (Status* status = api.KernelInfoGetAttribute_float()(info, name, &value)) {
    api.ReleaseStatus()(status);
    return fallback;
  }
  return value;
}

// One node of a graph: its attributes, and the interface it was created with.
struct PagedAttentionNode {
  static constexpr const char* kName = "PagedAttention";
  const Api& api;
  PagedAttentionAttributes attributes;

  PagedAttentionNode(const Api& table, const KernelInfo* info) : api(table) {
    attributes.num_heads = attribute(api, info, "num_heads", int64_t(0));
    attributes.kv_num_heads = attribute(api, info, "kv_num_heads", int64_t(0));
    attributes.scale = attribute(api, info, "scale", 0.0f);
    attributes.softcap = attribute(api, info, "softcap", 0.0f);
    attributes.do_rotary = attribute(api, info, "do_rotary", int64_t(0));
    attributes.rotary_interleaved = attribute(api, info, "rotary_interleaved", int64_t(0));
    attributes.local_window_size = attribute(api, info, "local_window_size", int64_t(-1));
  }
  void run(const Call& call) const { run_paged_attention(attributes, call); }
};

struct PackedAttentionNode {
  static constexpr const char* kName = "PackedAttention";
  const Api& api;
  PackedAttentionAttributes attributes;

  PackedAttentionNode(const Api& table, const KernelInfo* info) : api(table) {
    attributes.num_heads = attribute(api, info, "num_heads", int64_t(0));
    attributes.kv_num_heads = attribute(api, info, "kv_num_heads", int64_t(0));
    attributes.scale = attribute(api, info, "scale", 0.0f);
    attributes.left_window = attribute(api, info, "left_window", int64_t(-1));
    attributes.right_window = attribute(api, info, "right_window", int64_t(-1));
    attributes.rotary_interleaved = attribute(api, info, "rotary_interleaved", int64_t(0));
  }
  void run(const Call& call) const { run_packed_attention(attributes, call); }
};

struct PackedLayoutNode {
  static constexpr const char* kName = "PackedLayout";
  const Api& api;

  PackedLayoutNode(const Api& table, const KernelInfo*) : api(table) {}
  void run(const Call& call) const { run_packed_layout(call); }
};

struct PackedPoolNode {
  static constexpr const char* kName = "PackedPool";
  const Api& api;
  int64_t kind;

  PackedPoolNode(const Api& table, const KernelInfo* info)
      : api(table), kind(attribute(table, info, "kind", int64_t(0))) {}
  void run(const Call& call) const { run_packed_pool(kind, call); }
};

struct UnpackedRowsNode {
  static constexpr const char* kName = "UnpackedRows";
  const Api& api;

  UnpackedRowsNode(const Api& table, const KernelInfo*) : api(table) {}
  void run(const Call& call) const { run_unpacked_rows(call); }
};

struct EmbedLayerNormalizationNode {
  static constexpr const char* kName = "EmbedLayerNormalization";
  const Api& api;
  float epsilon;

  EmbedLayerNormalizationNode(const Api& table, const KernelInfo* info)
      : api(table), epsilon(attribute(table, info, "epsilon", 1e-5f)) {}
  void run(const Call& call) const { run_embed_layer_normalization(epsilon, call); }
};

struct SkipRmsNormalizationNode {
  static constexpr const char* kName = "SkipRMSNormalization";
  const Api& api;
  float epsilon;

  SkipRmsNormalizationNode(const Api& table, const KernelInfo* info)
      : api(table), epsilon(attribute(table, info, "epsilon", 1e-5f)) {}
  void run(const Call& call) const { run_skip_rms_normalization(epsilon, call); }
};

struct SkipLayerNormalizationNode {
  static constexpr const char* kName = "SkipLayerNormalization";
  const Api& api;
  float epsilon;

  SkipLayerNormalizationNode(const Api& table, const KernelInfo* info)
      : api(table), epsilon(attribute(table, info, "epsilon", 1e-5f)) {}
  void run(const Call& call) const { run_skip_layer_normalization(epsilon, call); }
};

struct BiasGeluNode {
  static constexpr const char* kName = "BiasGelu";
  const Api& api;
  bool tanh;

  BiasGeluNode(const Api& table, const KernelInfo* info)
      : api(table), tanh(attribute(table, info, "tanh", int64_t(0)) != 0) {}
  void run(const Call& call) const { run_bias_gelu(tanh, call); }
};

struct GegluNode {
  static constexpr const char* kName = "GeGLU";
  const Api& api;
  bool tanh;

  GegluNode(const Api& table, const KernelInfo* info)
      : api(table), tanh(attribute(table, info, "tanh", int64_t(0)) != 0) {}
  void run(const Call& call) const { run_geglu(tanh, call); }
};

struct SwigluNode {
  static constexpr const char* kName = "SwiGLU";
  const Api& api;

  SwigluNode(const Api& table, const KernelInfo*) : api(table) {}
  void run(const Call& call) const { run_swiglu(call); }
};

struct ExpertLinearNode {
  static constexpr const char* kName = "ExpertLinear";
  const Api& api;
  bool transposed;

  ExpertLinearNode(const Api& table, const KernelInfo* info)
      : api(table), transposed(attribute(table, info, "transposed", int64_t(0)) != 0) {}
  void run(const Call& call) const { run_expert_linear(transposed, call); }
};

QuantizedAttributes quantized_attributes(const Api& api, const KernelInfo* info) {
  return {attribute(api, info, "bits", int64_t(8)), attribute(api, info, "columns", int64_t(0)),
          attribute(api, info, "input_blocks", int64_t(0)) != 0};
}

struct QuantizedMatMulNode {
  static constexpr const char* kName = "QuantizedMatMul";
  const Api& api;
  QuantizedAttributes attributes;

  QuantizedMatMulNode(const Api& table, const KernelInfo* info)
      : api(table), attributes(quantized_attributes(table, info)) {}
  void run(const Call& call) const { run_quantized_matmul(attributes, call); }
};

struct QuantizedGatherNode {
  static constexpr const char* kName = "QuantizedGather";
  const Api& api;
  QuantizedAttributes attributes;
  int64_t size;

  QuantizedGatherNode(const Api& table, const KernelInfo* info)
      : api(table),
        attributes(quantized_attributes(table, info)),
        size(attribute(table, info, "size", int64_t(0))) {}
  void run(const Call& call) const { run_quantized_gather(attributes, size, call); }
};

struct QuantizedExpertLinearNode {
  static constexpr const char* kName = "QuantizedExpertLinear";
  const Api& api;
  QuantizedAttributes attributes;

  QuantizedExpertLinearNode(const Api& table, const KernelInfo* info)
      : api(table), attributes(quantized_attributes(table, info)) {}
  void run(const Call& call) const { run_quantized_expert_linear(attributes, call); }
};

struct FakeQuantizeTokensNode {
  static constexpr const char* kName = "FakeQuantizeTokens";
  const Api& api;

  FakeQuantizeTokensNode(const Api& table, const KernelInfo*) : api(table) {}
  void run(const Call& call) const { run_fake_quantize_tokens(call); }
};

// Types and optionality of a node's inputs and outputs.
struct Signature {
  size_t inputs, outputs;
  ElementType input_types[21];
  ElementType output_types[3];
  uint32_t optional_inputs, optional_outputs;  // bit i: input or output i may be absent
};

constexpr uint32_t bits(size_t first, size_t last) { return ((1u << (last - first + 1)) - 1) << first; }

constexpr Signature paged_attention_signature(ElementType pool) {
  return {21,
          3,
          {kFloat, kFloat, kFloat, pool,   pool,   kInt32, kInt32, kInt32, kFloat, kFloat,
           kInt32, kFloat, kFloat, kFloat, kFloat, kFloat, kInt32, kInt32, kFloat, kBool,
           kFloat},
          {kFloat, pool, pool},
          bits(1, 2) | bits(8, 9) | bits(11, 20),
          bits(1, 2)};
}

// CustomOp with the signature behind it; ONNX Runtime hands the CustomOp back to every callback.
struct Operator : CustomOp {
  Signature signature;
};

const Signature& signature_of(const CustomOp* op) { return static_cast<const Operator*>(op)->signature; }

template <class Node>
Operator make_operator(const Signature& signature) {
  Operator op{};
  op.signature = signature;
  op.version = kApiVersion;
  op.GetName = [](const CustomOp*) { return Node::kName; };
  op.GetExecutionProviderType = [](const CustomOp*) { return "CPUExecutionProvider"; };
  op.GetInputType = [](const CustomOp* self, size_t i) { return signature_of(self).input_types[i]; };
  op.GetInputTypeCount = [](const CustomOp* self) { return signature_of(self).inputs; };
  op.GetOutputType = [](const CustomOp* self, size_t i) { return signature_of(self).output_types[i]; };
  op.GetOutputTypeCount = [](const CustomOp* self) { return signature_of(self).outputs; };
  op.GetInputCharacteristic = [](const CustomOp* self, size_t i) {
    return signature_of(self).optional_inputs >> i & 1 ? kOptional : kRequired;
  };
  op.GetOutputCharacteristic = [](const CustomOp* self, size_t i) {
    return signature_of(self).optional_outputs >> i & 1 ? kOptional : kRequired;
  };
  op.GetInputMemoryType = [](const CustomOp*, size_t) { return 0; };
  op.GetVariadicInputMinArity = [](const CustomOp*) { return 1; };
  op.GetVariadicInputHomogeneity = [](const CustomOp*) { return 1; };
  op.GetVariadicOutputMinArity = [](const CustomOp*) { return 1; };
  op.GetVariadicOutputHomogeneity = [](const CustomOp*) { return 1; };
  op.GetStartVersion = [](const CustomOp*) { return 1; };
  op.GetEndVersion = [](const CustomOp*) { return 1; };
  op.CreateKernelV2 = [](const CustomOp*, const Api* api, const KernelInfo* info, void** kernel) {
    return guarded(*api, Node::kName, [&] { *kernel = new Node(*api, info); });
  };
  op.KernelComputeV2 = [](void* kernel, KernelContext* context) {
    const Node& node = *static_cast<const Node*>(kernel);
    return guarded(node.api, Node::kName, [&] { node.run(Call(node.api, context)); });
  };
  op.KernelDestroy = [](void* kernel) { delete static_cast<Node*>(kernel); };
  return op;
}

// The domain with all operators. It lives as long as the library: sessions keep pointers into it.
Domain* make_domain(const Api& api) {
  static const Operator operators[] = {
      make_operator<PagedAttentionNode>(paged_attention_signature(kFloat)),
      make_operator<PagedAttentionNode>(paged_attention_signature(kFloat16)),
      make_operator<PagedAttentionNode>(paged_attention_signature(kBFloat16)),
      make_operator<PagedAttentionNode>(paged_attention_signature(kInt8)),
      make_operator<PagedAttentionNode>(paged_attention_signature(kFloat8E4m3)),
      make_operator<PackedAttentionNode>(
          {8, 1, {kFloat, kFloat, kFloat, kInt32, kFloat, kFloat, kFloat, kInt32}, {kFloat}, bits(1, 2) | bits(4, 7), 0}),
      make_operator<PackedLayoutNode>({1, 3, {kInt64}, {kInt32, kInt32, kInt32}, 0, bits(0, 2)}),
      make_operator<PackedPoolNode>({2, 1, {kFloat, kInt32}, {kFloat}, 0, 0}),
      make_operator<UnpackedRowsNode>({3, 1, {kFloat, kInt32, kInt64}, {kFloat}, 0, 0}),
      make_operator<EmbedLayerNormalizationNode>({8,
                                                  2,
                                                  {kUndefined, kFloat, kUndefined, kFloat, kFloat, kFloat, kUndefined, kFloat},
                                                  {kFloat, kFloat},
                                                  bits(5, 7),
                                                  bits(1, 1)}),
      make_operator<SkipRmsNormalizationNode>(
          {3, 2, {kFloat, kFloat, kFloat}, {kFloat, kFloat}, 0, bits(1, 1)}),
      make_operator<SkipLayerNormalizationNode>(
          {5, 2, {kFloat, kFloat, kFloat, kFloat, kFloat}, {kFloat, kFloat}, bits(3, 4), bits(1, 1)}),
      make_operator<BiasGeluNode>({2, 1, {kFloat, kFloat}, {kFloat}, 0, 0}),
      make_operator<GegluNode>({1, 1, {kFloat}, {kFloat}, 0, 0}),
      make_operator<SwigluNode>({1, 1, {kFloat}, {kFloat}, 0, 0}),
      make_operator<ExpertLinearNode>({3, 1, {kFloat, kFloat, kInt32}, {kFloat}, 0, 0}),
      make_operator<QuantizedMatMulNode>(
          {5, 1, {kFloat, kUInt8, kFloat, kFloat, kFloat}, {kFloat}, bits(3, 4), 0}),
      make_operator<QuantizedGatherNode>({3, 1, {kUInt8, kFloat, kInt32}, {kFloat}, 0, 0}),
      make_operator<QuantizedGatherNode>({3, 1, {kUInt8, kFloat, kInt64}, {kFloat}, 0, 0}),
      make_operator<QuantizedExpertLinearNode>({4, 1, {kFloat, kUInt8, kFloat, kInt32}, {kFloat}, 0, 0}),
      make_operator<FakeQuantizeTokensNode>({1, 1, {kFloat}, {kFloat}, 0, 0}),
  };
  Domain* domain = nullptr;
  check(api.CreateCustomOpDomain()("slipway", &domain));
  for (const Operator& op : operators) check(api.CustomOpDomain_Add()(domain, &op));
  return domain;
}

}  // namespace
}  // namespace slipway::cpu

// Called by SessionOptions.register_custom_ops_library.
extern "C" __attribute__((visibility("default"))) slipway::ort::Status* RegisterCustomOps(
    slipway::ort::SessionOptions* options, const slipway::ort::ApiBase* base) {
  const slipway::ort::Api* api = base->GetApi(slipway::ort::kApiVersion);
  if (!api) return nullptr;  // ONNX Runtime before 1.24: it says itself that the operators are missing
  return slipway::cpu::guarded(*api, "RegisterCustomOps", [&] {
    static slipway::ort::Domain* const domain = slipway::cpu::make_domain(*api);
    slipway::ort::check(api->AddCustomOpDomain()(options, domain));
  });
}
