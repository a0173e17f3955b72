#include <cstdint>

#include "attention_plan.hpp"
#include "operator.hpp"
#include "slipway/step_prepare.cuh"

namespace slipway {
namespace {

StepPrepareParams params_of(const Arguments& a) {
  StepPrepareParams p;
  p.sampled = a.data<const int32_t>("sampled"), p.num_accepted = a.data<const int32_t>("num_accepted");
  p.draft_tokens = a.data<const int32_t>("draft_tokens"),
  p.stop_tokens = a.data<const int32_t>("stop_tokens");
  p.block_table = a.data<const int32_t>("block_table");
  p.status = a.data<int32_t>("status"), p.past_lens = a.data<int32_t>("past_lens");
  p.remaining = a.data<int32_t>("remaining"), p.next_token = a.data<int32_t>("next_token");
  p.num_sampled = a.data<int32_t>("num_sampled");
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
  require(p.width == 1 || p.num_accepted != nullptr, "sampled has %d columns, which needs num_accepted",
          p.width);
  const int64_t rows = int64_t(p.batch) * (1 + p.drafts);
  require(p.tokens >= rows, "input_ids has %d tokens; %d sequences of 1 + %d tokens need %lld", p.tokens,
          p.batch, p.drafts, (long long)rows);
  require(selected == rows, "logits_indices has %lld rows; it must have batch * (1 + drafts) = %lld",
          (long long)selected, (long long)rows);
}

// The work list of the step's attention layers, from the tensors that were just written.
AttentionPlanParams plan_of(const Arguments& a, const StepPrepareParams& p) {
  AttentionPlanParams plan = {};
  plan.cu_seqlens = p.cu_seqlens, plan.past_lens = p.past_lens;
  plan.metadata = a.data<int>("attention_metadata");
  AttentionLimits& l = plan.limits;
  l.batch = p.batch, l.tokens = p.tokens;
  l.heads = int(a.integer("num_heads")), l.kv_heads = int(a.integer("kv_num_heads"));
  l.max_length = p.max_blocks * p.block_size, l.pool_tokens = a.integer("pool_tokens");
  l.window = int(a.integer("local_window_size")), l.chunk = int(a.integer("chunk"));
  l.max_split_tokens = int(a.integer("max_split_tokens")), l.workers = attention_workers();
  const int64_t needed = attention_metadata_ints(l);
  require(a.dim("metadata") >= needed, "attention_metadata has %lld elements; these limits need %lld",
          (long long)a.dim("metadata"), (long long)needed);
  return plan;
}

void run(const Arguments& a, void*, void* stream) {
  const StepPrepareParams p = params_of(a);
  check(p, a.dim("selected"));
  AttentionPlanParams plan = {};
  if (a.has("attention_metadata")) plan = plan_of(a, p);
  ptx::launch(step_prepare_kernel, dim3(1), dim3(kStepPrepareThreads), sizeof(int) * kStepPrepareThreads / 32,
              stream, p);
  if (a.has("attention_metadata")) launch_attention_plan(plan, stream);
}

}  // namespace

const Operator kStepPrepare = {
    "step_prepare",
    "the tensors of the next decode step from the tokens of the last one",
    {},
    {input("sampled", "int32", {"batch", "width"}, "tokens of the last step; read of running rows alone"),
     optional_input("num_accepted", "int32", {"batch"},
                    "drafts that proved right: one more of `sampled` counts"),
     optional_input("draft_tokens", "int32", {"batch", "drafts"},
                    "guesses after the newest token; a negative one ends them"),
     optional_input("stop_tokens", "int32", {"batch", "stops"}, "tokens that end a sequence; -1: none"),
     input("block_table", "int32", {"batch", "max_blocks"}, "blocks of each sequence; -1: none"),
     inout("status", "int32", {"batch"},
           "0 empty, 1 running, 2 waiting (joins, or lacks a block), 3 stopped by a token, "
           "4 exhausted, 5 failed by a negative token"),
     inout("past_lens", "int32", {"batch"}, "tokens in the cache"),
     inout("remaining", "int32", {"batch"}, "tokens that the sequence may still give"),
     inout("next_token", "int32", {"batch"}, "the newest token, not in the cache yet"),
     optional_inout("num_sampled", "int32", {"batch"},
                    "tokens that the sequence has given: `position` of sampling"),
     output("num_new_tokens", "int32", {"batch"}, "how many of `sampled` the sequence got"),
     output("input_ids", "int32", {"tokens"}, "0 in the padding"),
     output("position_ids", "int32", {"tokens"}, "0 in the padding"),
     output("slot_mapping", "int32", {"tokens"}, "-1 in the padding"),
     output("cu_seqlens", "int32", {"batch+1"},
            "start of each sequence; those that take no part have no tokens"),
     output("logits_indices", "int32", {"selected"},
            "[batch, 1 + drafts] flat: the token of each wanted row, the last repeated; 0 where there is none"),
     optional_output("attention_metadata", "int32", {"metadata"},
                     "the work list of the step: as attention_plan writes it, by the attributes below")},
    {integer_attribute("block_size", 16, 1, 65536, "tokens of a cache block"),
     integer_attribute("num_heads", 1, 1, 1 << 16, "query heads"),
     integer_attribute("kv_num_heads", 1, 1, 1 << 16, "key heads; divides num_heads"),
     integer_attribute("pool_tokens", 1, 1, int64_t(1) << 40, "blocks of the pools times block_size"),
     integer_attribute("local_window_size", -1, -1, 1 << 28,
                       "keys that a query sees, its own included; -1: all"),
     integer_attribute("chunk", 512, 64, 1 << 24, "keys between two cuts; a multiple of 64"),
     integer_attribute("max_split_tokens", 8, 1, 1 << 24, "sequences with more new tokens are not split")},
    no_workspace,
    run,
    {"tokens: at least batch * (1 + drafts)", "selected: batch * (1 + drafts)",
     "attention_metadata: as many elements as attention_plan needs for these attributes and max_blocks * "
     "block_size"}};
REGISTER_OPERATOR(kStepPrepare)

}  // namespace slipway
