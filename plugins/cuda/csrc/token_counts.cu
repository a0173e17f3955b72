#include "slipway/token_counts.cuh"

#include "operator.hpp"

namespace slipway {
namespace {

void run(const Arguments& a, void*, void* stream) {
  sampling::TokenCounts p;
  p.table = a.data<int16_t>("token_counts"), p.slots = int(a.dim("slots")), p.vocab = int(a.dim("vocab"));
  p.tokens = a.data<const int32_t>("tokens"), p.cu_tokens = a.data<const int32_t>("cu_tokens");
  p.prompt_lens = a.data<const int32_t>("prompt_lens"), p.count_slots = a.data<const int32_t>("count_slots");
  const int64_t requests = a.dim("requests");
  require(p.vocab >= 1, "vocab is 0; it must be at least 1");
  if (requests == 0) return;
  ptx::launch(sampling::token_counts_kernel, dim3(unsigned(requests)), dim3(p.vocab <= 8192 ? 64 : 512), 0, stream, p);
}

}  // namespace

const Operator kTokenCounts = {
    "token_counts",
    "rows of the table of token counts that sampling takes penalties from, written for requests that begin or resume",
    {},
    {inout("token_counts", "int16", {"slots", "vocab"}, "low 15 bits: times chosen; bit 15: in the prompt"),
     input("tokens", "int32", {"total"}, "all requests' tokens so far, packed; -1 is not counted"),
     input("cu_tokens", "int32", {"requests+1"}, "start of each request's tokens"),
     input("prompt_lens", "int32", {"requests"}, "so many of them are its prompt; the others were chosen"),
     input("count_slots", "int32", {"requests"}, "row of each request, none twice; -1: none")},
    {},
    no_workspace,
    run};
REGISTER_OPERATOR(kTokenCounts)

}  // namespace slipway
