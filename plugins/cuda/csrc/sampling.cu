#include "slipway/sampling.cuh"

#include "dispatch.hpp"
#include "sampling_distribution.hpp"

namespace slipway {
namespace {

using namespace sampling;

struct Call {
  Rows rows;
  Division division;
  Workspace workspace, log_prob_workspace;
  bool log_probs;
  int64_t bytes;
};

Call call_of(const Arguments& a, void* memory) {
  Call c;
  const int64_t batch = a.dim("batch"), vocab = a.dim("vocab");
  c.division = divide(batch, vocab);
  c.log_probs = a.has("token_log_prob") || a.has("top_ids") || a.has("top_log_probs");
  const bool adjusted = a.has("bias_ids") || a.has("token_counts") || a.has("allowed_tokens");
  WorkspaceParts parts(memory);
  c.workspace = take_workspace(parts, c.division, batch, vocab, adjusted);
  if (c.log_probs) c.log_prob_workspace = take_workspace(parts, c.division, batch, vocab, false);
  c.bytes = parts.bytes();

  Rows& p = c.rows;
  p = rows_of(a, batch);
  p.row_stride = a.stride("logits", 0);
  p.repetition_penalty = a.data<const float>("repetition_penalty");
  p.frequency_penalty = a.data<const float>("frequency_penalty");
  p.presence_penalty = a.data<const float>("presence_penalty");
  p.token_counts = a.data<int16_t>("token_counts"), p.count_slots = a.data<const int32_t>("count_slots");
  p.slots = int(a.dim("slots"));
  p.bias_ids = a.data<const int32_t>("bias_ids"), p.bias_values = a.data<const float>("bias_values");
  p.bias_length = int(a.dim("biases"));
  return c;
}

void check(const Arguments& a) {
  check_allowed_tokens(a);
  require(a.has("bias_ids") == a.has("bias_values"), "bias_ids and bias_values must be given together");
  require(a.has("token_counts") || !a.has("count_slots"), "count_slots is given without token_counts");
  for (const char* penalty : {"repetition_penalty", "frequency_penalty", "presence_penalty"})
    require(a.has("token_counts") || !a.has(penalty), "%s is given without token_counts", penalty);
  require(a.dim("top") <= kMaxTop && a.dim("top") <= a.dim("vocab"), "top is %lld; allowed are 0 to %lld",
          static_cast<long long>(a.dim("top")),
          static_cast<long long>(a.dim("vocab") < kMaxTop ? a.dim("vocab") : kMaxTop));
}

int64_t workspace(const Arguments& a) {
  check(a);
  return call_of(a, nullptr).bytes;
}

void run(const Arguments& a, void* memory, void* stream) {
  check(a);
  const Call c = call_of(a, memory);
  const Rows& p = c.rows;
  if (p.rows == 0) return;
  const dim3 grid = dim3(unsigned(p.rows)), block = dim3(unsigned(c.division.finish_warps * 32));
  launch_distribution(p, c.division, c.workspace, a.type("T"), stream);
  dispatch_float(a.type("T"), [&](auto tag) {
    using T = typename decltype(tag)::type;
    const Draws draws = {a.data<const u64>("seed"), a.data<const int32_t>("position"), a.data<int32_t>("token")};
    ptx::launch(draw_kernel<T>, grid, block, size_t(draw_shared_bytes(c.division)), stream, p, c.division,
                c.workspace, draws);
    if (!c.log_probs) return;
    LogProbs o = {draws.token, a.data<float>("token_log_prob"), a.data<int32_t>("top_ids"),
                  a.data<float>("top_log_probs"), int(a.dim("top"))};
    Rows raw;  // the model's own distribution: nothing adjusted, temperature 1
    raw.logits = p.logits, raw.row_stride = p.row_stride, raw.rows = p.rows, raw.vocab = p.vocab;
    raw.every_top_k = o.top, raw.log_probs = true;
    launch_distribution(raw, c.division, c.log_prob_workspace, a.type("T"), stream);
    ptx::launch(log_prob_kernel<T>, grid, block, size_t(finish_shared_bytes(c.division)) + sizeof(TopMemory), stream,
                raw, c.division, c.log_prob_workspace, o);
  });
}

}  // namespace

const Operator kSampling = {
    "sampling",
    "a token from each row of logits: penalties, temperature, top-k, min-p, top-p, a random number of the request",
    {{"T", {kFloat32, kFloat16, kBFloat16}}},
    {strided(input("logits", "T", {"batch", "vocab"}, "a row with NaN, +inf or nothing but -inf gives token -1")),
     input("seed", "uint64", {"batch"}, "key of the request's random numbers"),
     input("position", "int32", {"batch"}, "index of the output token, 0 for the first; the counter"),
     output("token", "int32", {"batch"}, "the chosen token; -1: none can be"),
     optional_input("temperature", "float32", {"batch"}, "1 where absent; 0 chooses the likeliest token"),
     optional_input("top_k", "int32", {"batch"}, "0: off"),
     optional_input("top_p", "float32", {"batch"}, "1: off"),
     optional_input("min_p", "float32", {"batch"}, "0: off"),
     optional_input("repetition_penalty", "float32", {"batch"}, "logits of seen tokens / it or, if negative, * it"),
     optional_input("frequency_penalty", "float32", {"batch"}, "taken off for each time that the token was chosen"),
     optional_input("presence_penalty", "float32", {"batch"}, "taken off if the token was chosen"),
     optional_inout("token_counts", "int16", {"slots", "vocab"},
                    "low 15 bits: times chosen; bit 15: in the prompt. The chosen token is counted in"),
     optional_input("count_slots", "int32", {"batch"}, "rows of token_counts, none twice; -1: none. Absent: 0, 1, ..."),
     optional_input("allowed_tokens", "int32", {"batch", "mask_words"}, "bit t % 32 of word t / 32 allows token t"),
     optional_input("bias_ids", "int32", {"batch", "biases"}, "tokens; after a row's last one -1"),
     optional_input("bias_values", "float32", {"batch", "biases"}, "added to their logits, before penalties"),
     optional_output("token_log_prob", "float32", {"batch"}, "the model's own, before any parameter; NaN for token -1"),
     optional_output("top_ids", "int32", {"batch", "top"}, "the model's likeliest tokens, likeliest first"),
     optional_output("top_log_probs", "float32", {"batch", "top"}, "and their log-probabilities")},
    {},
    workspace,
    run,
    {"vocab: 1 to 1048576", "batch: at most 65535", "top: at most 64", "mask_words: vocab / 32, rounded up"}};
REGISTER_OPERATOR(kSampling)

}  // namespace slipway
