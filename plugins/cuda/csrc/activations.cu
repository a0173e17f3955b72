#include "slipway/activations.cuh"

#include "rows.hpp"

namespace slipway {
namespace {

void run_activation(const Arguments& a, void* stream, bool gated) {
  dispatch_rows(a, [&](auto type, auto out) {
    using T = typename decltype(type)::type;
    using Out = typename decltype(out)::type;
    ActivationParams<T, Out> p;
    p.input = a.data<const T>(gated ? "gate_up" : "input");
    if (!gated) p.bias = a.data<const T>("bias");
    p.kind = Activation(a.integer("activation"));
    p.gated = gated;
    p.rows = a.dim("rows"), p.columns = a.dim(gated ? "intermediate" : "hidden");
    p.to = row_output<Out>(a);
    dispatch_form(p.rows, p.columns, [&](auto form, const RowPlan& plan, dim3 blocks) {
      ptx::launch(activation_kernel<T, Out, decltype(form)::value>, blocks, dim3(unsigned(plan.threads)),
                  kRowSharedBytes, stream, p);
    });
  });
}
void run_gated(const Arguments& a, void*, void* stream) { run_activation(a, stream, true); }
void run_plain(const Arguments& a, void*, void* stream) { run_activation(a, stream, false); }

const std::map<std::string, std::vector<DType>> kTypes = {
    {"T", {kFloat16, kBFloat16, kFloat32}},
    {"O", {kFloat16, kBFloat16, kFloat32, kInt8, kFloat8E4M3}},
};
const std::vector<Attribute> kAttributes = {
    integer_attribute("activation", 0, 0, 2, "0: silu, 1: gelu with tanh, 2: gelu with erf"),
};

}  // namespace

const Operator kGatedActivation = {
    "gated_activation",
    "f(gate) * up in float32 (SwiGLU, GeGLU)",
    kTypes,
    {input("gate_up", "T", {"rows", "2*intermediate"}, "gate, then up"), scale_input(),
     output("output", "O", {"rows", "intermediate"}, "the products"), row_scale_output()},
    kAttributes,
    no_workspace,
    run_gated,
    {kOutputLimit, "intermediate: any; fast when a multiple of 8"},
};
REGISTER_OPERATOR(kGatedActivation)

const Operator kActivation = {
    "activation",
    "f(input + bias) in float32",
    kTypes,
    {input("input", "T", {"rows", "hidden"}, "the rows"), optional_input("bias", "T", {"hidden"}, "added before"),
     scale_input(), output("output", "O", {"rows", "hidden"}, "the results"), row_scale_output()},
    kAttributes,
    no_workspace,
    run_plain,
    {kOutputLimit, "hidden: any; fast when a multiple of 8"},
};
REGISTER_OPERATOR(kActivation)

}  // namespace slipway
