#include "slipway/norms.cuh"

#include "rows.hpp"

namespace slipway {
namespace {

template <class T, class Out>
void launch_norm(const NormParams<T, Out>& p, void* stream) {
  dispatch_form(p.rows, p.columns, [&](auto form, const RowPlan& plan, dim3 blocks) {
    ptx::launch(norm_kernel<T, Out, decltype(form)::value>, blocks, dim3(unsigned(plan.threads)), kRowSharedBytes,
                stream, p);
  });
}

void run_norm(const Arguments& a, void* stream, bool centered) {
  const DType weight = a.type("W");
  require(weight == a.type("T") || weight == kFloat32, "weight is %s; it must be float32 or of the input's type",
          dtype_name(weight));
  require(!a.has("input_skip_sum") || a.has("skip"), "input_skip_sum is given without skip");
  dispatch_rows(a, [&](auto type, auto out) {
    using T = typename decltype(type)::type;
    using Out = typename decltype(out)::type;
    NormParams<T, Out> p;
    p.input = a.data<const T>("input");
    p.skip = a.data<const T>("skip");
    p.sum = a.data<T>("input_skip_sum");
    p.weight = a.data<const void>("weight");
    p.bias = a.data<const void>("bias");
    p.float_weight = weight == kFloat32;
    p.weight_offset = float(a.attribute("weight_offset"));
    p.epsilon = float(a.attribute("epsilon"));
    p.centered = centered;
    p.rows = a.dim("rows"), p.columns = a.dim("hidden");
    p.to = row_output<Out>(a);
    launch_norm(p, stream);
  });
}
void run_rms_norm(const Arguments& a, void*, void* stream) { run_norm(a, stream, false); }
void run_layer_norm(const Arguments& a, void*, void* stream) { run_norm(a, stream, true); }

const std::map<std::string, std::vector<DType>> kTypes = {
    {"T", {kFloat16, kBFloat16, kFloat32}},
    {"W", {kFloat16, kBFloat16, kFloat32}},
    {"O", {kFloat16, kBFloat16, kFloat32, kInt8, kFloat8E4M3}},
};
const std::vector<Parameter> kParameters = {
    input("input", "T", {"rows", "hidden"}, "the rows"),
    optional_input("skip", "T", {"rows", "hidden"}, "added to the rows before"),
    input("weight", "W", {"hidden"}, "what normalized rows are multiplied by; of type T or float32"),
    optional_input("bias", "W", {"hidden"}, "added at the end"),
    scale_input(),
    output("output", "O", {"rows", "hidden"}, "the normalized rows"),
    row_scale_output(),
    optional_output("input_skip_sum", "T", {"rows", "hidden"}, "input + skip"),
};
const std::vector<Attribute> kAttributes = {
    attribute("epsilon", 1e-6, 0, 1, "added to the mean square or the variance"),
    attribute("weight_offset", 0, -1, 1, "added to the weight (Gemma: 1)"),
};
const std::vector<const char*> kLimits = {kOutputLimit, "hidden: any; fast when a multiple of 8 up to 16384"};

}  // namespace

const Operator kRmsNorm = {
    "rms_norm",
    "x / sqrt(mean(x^2) + epsilon) * (weight + weight_offset) + bias with x = input + skip, in float32",
    kTypes,
    kParameters,
    kAttributes,
    no_workspace,
    run_rms_norm,
    kLimits,
};
REGISTER_OPERATOR(kRmsNorm)

const Operator kLayerNorm = {
    "layer_norm",
    "(x - mean(x)) / sqrt(variance(x) + epsilon) * (weight + weight_offset) + bias with x = input + skip, in float32",
    kTypes,
    kParameters,
    kAttributes,
    no_workspace,
    run_layer_norm,
    kLimits,
};
REGISTER_OPERATOR(kLayerNorm)

}  // namespace slipway
