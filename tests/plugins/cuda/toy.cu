// An operator as small as one can be, for the tests of what all operators share.
#include "dispatch.hpp"
#include "operator.hpp"
#include "slipway/ptx.cuh"

namespace slipway {
namespace {

template <class T>
__global__ void scale_kernel(const T* input, T* output, int64_t count, float factor, int64_t overrun) {
  const int64_t i = int64_t(blockIdx.x) * 32 + threadIdx.x;
  if (i < count + overrun) output[i] = ptx::from_float<T>(ptx::to_float(input[i < count ? i : 0]) * factor);
}

int64_t workspace(const Arguments& a) { return a.integer("workspace"); }

void run(const Arguments& a, void*, void* stream) {
  require(a.dim("hidden") != 13, "hidden is 13; any other is allowed");
  if (a.dim("hidden") == 14) unsupported("hidden 14 is for later chips");
  if (a.dim("hidden") == 15) throw 15;
  const int64_t count = a.dim("rows") * a.dim("hidden");
  dispatch_half(a.type("T"), [&](auto tag) {
    using T = typename decltype(tag)::type;
    ptx::launch(scale_kernel<T>, dim3(unsigned(count / 32 + 1)), dim3(32), 0, stream, a.data<const T>("input"),
                a.data<T>("output"), count, float(a.attribute("factor")), a.integer("overrun"));
  });
}

}  // namespace

const Operator kToy = {
    "toy",
    "output = input * factor",
    {{"T", {kFloat16, kBFloat16}}},
    {input("input", "T", {"rows", "hidden"}, "what is scaled"), output("output", "T", {"rows", "hidden"}, "the product"),
     optional_input("offsets", "int32", {"rows+1"}, "looked at by nobody"),
     strided(optional_input("pairs", "float32", {"1|rows", "2*hidden"}, "looked at by nobody"))},
    {attribute("factor", 2, 0, 10, "what it is multiplied with"),
     integer_attribute("overrun", 0, 0, 8, "elements written past the end"),
     integer_attribute("workspace", 0, 0, 1 << 20, "bytes asked for")},
    workspace,
    run,
    {"hidden: not 13"},
};
REGISTER_OPERATOR(kToy)

}  // namespace slipway
