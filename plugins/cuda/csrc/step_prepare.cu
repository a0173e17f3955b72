#include <cstdint>

#include "operator.hpp"
#include "slipway/step_prepare.cuh"

namespace slipway {
namespace {

StepPrepareParams params_of(const Arguments& a) {
  StepPrepareParams p;
  p.sampled = a.data<const int32_t>("sampled"), p.num_accepted = a.data<const int32_t>("num_accepted");
  p.draft_tokens = a.data<const int32_t>("draft_tokens"), p.stop_tokens = a.data<const int32_t>("stop_tokens");
  p.block_table = a.data<const int32_t>("block_table");
  p.status = a.data<int32_t>("status"), p.past_lens = a.data<int32_t>("past_lens");
  p.remaining = a.data<int32_t>("remaining"), p.next_token = a.data<int32_t>("next_token");
  p.num_new_tokens = a.data<int32_t>("num_new_tokens");
  p.input_ids = a.data<int32_t>("input_ids"), p.position_ids = a.data<int32_t>("position_ids");
  p.slot_mapping = a.data<int32_t>("slot_mapping"), p.cu_seqlens = a.data<int32_t>("cu_seqlens");
  p.logits_indices = a.data<int32_t>("logits_indices");
  p.batch = int(a.dim("batch")), p.width = int(a.dim("width")), p.drafts = int(a.dim("drafts"));
  p.stops = int(a.dim("stops")), p.max_blocks = int(a.dim("max_blocks"));
  p.block_size = int(a.integer("block_size")), p.tokens = int(a.dim("tokens"));
  return p;
}

void check(const StepPrepareParams& p, int64_t selected) {
  require(p.width >= 1, "sampled has no column");
  require(p.width == 1 || p.num_accepted != nullptr, "sampled has %d columns, which needs num_accepted", p.width);
  const int64_t rows = int64_t(p.batch) * (1 + p.drafts);
  require(p.tokens >= rows, "input_ids has %d tokens; %d sequences of 1 + %d tokens need %lld", p.tokens, p.batch,
          p.drafts, (long long)rows);
  require(selected == rows, "logits_indices has %lld rows; it must have batch * (1 + drafts) = %lld",
          (long long)selected, (long long)rows);
}

void run(const Arguments& a, void*, void* stream) {
  const StepPrepareParams p = params_of(a);
  check(p, a.dim("selected"));
  ptx::launch(step_prepare_kernel, dim3(1), dim3(kStepPrepareThreads), sizeof(int) * kStepPrepareThreads / 32, stream,
              p);
}

}  // namespace

const Operator kStepPrepare = {
    "step_prepare",
    "the tensors of the next decode step from the tokens of the last one",
    {},
    {input("sampled", "int32", {"batch", "width"}, "tokens of the last step; read of running rows alone"),
     optional_input("num_accepted", "int32", {"batch"}, "drafts that proved right: one more of `sampled` counts"),
     optional_input("draft_tokens", "int32", {"batch", "drafts"}, "guesses after the newest token; a negative one ends "
                                                                  "them"),
     optional_input("stop_tokens", "int32", {"batch", "stops"}, "tokens that end a sequence; negative: none"),
     input("block_table", "int32", {"batch", "max_blocks"}, "blocks of each sequence; -1: none"),
     inout("status", "int32", {"batch"}, "0 empty, 1 running, 2 waiting (joins, or lacks a block), 3 stopped by a token, "
                                         "4 exhausted"),
     inout("past_lens", "int32", {"batch"}, "tokens in the cache"),
     inout("remaining", "int32", {"batch"}, "tokens that the sequence may still give"),
     inout("next_token", "int32", {"batch"}, "the newest token, not in the cache yet"),
     output("num_new_tokens", "int32", {"batch"}, "how many of `sampled` the sequence got"),
     output("input_ids", "int32", {"tokens"}, "0 in the padding"),
     output("position_ids", "int32", {"tokens"}, "0 in the padding"),
     output("slot_mapping", "int32", {"tokens"}, "-1 in the padding"),
     output("cu_seqlens", "int32", {"batch+1"}, "start of each sequence; those that take no part have no tokens"),
     output("logits_indices", "int32", {"selected"}, "[batch, 1 + drafts] flat: the token of each wanted row, the last "
                                                     "repeated; 0 for sequences without tokens")},
    {integer_attribute("block_size", 16, 1, 65536, "tokens of a cache block")},
    no_workspace,
    run,
    {"tokens: at least batch * (1 + drafts)", "selected: batch * (1 + drafts)"}};
REGISTER_OPERATOR(kStepPrepare)

}  // namespace slipway
