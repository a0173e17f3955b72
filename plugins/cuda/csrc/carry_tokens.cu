#include "slipway/carry_tokens.cuh"

#include "operator.hpp"

namespace slipway {
namespace {

void run(const Arguments& a, void*, void* stream) {
  CarryTokensParams p;
  p.sampled = a.data<const int32_t>("sampled"), p.source = a.data<const int32_t>("source");
  p.input_ids = a.data<int32_t>("input_ids");
  const int64_t rows = a.dim("rows"), tokens = a.dim("tokens");
  require(rows <= INT32_MAX && tokens <= INT32_MAX - kCarryTokensThreads,
          "%lld rows and %lld tokens are too many for one launch", (long long)rows, (long long)tokens);
  p.rows = int(rows), p.tokens = int(tokens);
  if (p.tokens == 0) return;
  const int blocks = (p.tokens + kCarryTokensThreads - 1) / kCarryTokensThreads;
  ptx::launch(carry_tokens_kernel, dim3(unsigned(blocks)), dim3(kCarryTokensThreads), 0, stream, p);
}

}  // namespace

const Operator kCarryTokens = {
    "carry_tokens",
    "tokens that the last step sampled, to the places of the next step that begin with them",
    {},
    {input("sampled", "int32", {"rows"}, "the last step's tokens; a negative one counts as 0"),
     input("source", "int32", {"tokens"}, "row of `sampled` for each token; negative: the token stays"),
     inout("input_ids", "int32", {"tokens"}, "the next step's tokens")},
    {},
    no_workspace,
    run,
    {"source: at most rows - 1; a token of a larger row stays"}};
REGISTER_OPERATOR(kCarryTokens)

}  // namespace slipway
