#include "attention_plan.hpp"

#include "operator.hpp"
#include "slipway/attention_plan_kernel.cuh"

namespace slipway {

void launch_attention_plan(const AttentionPlanParams& p, void* stream) {
  const AttentionLimits& l = p.limits;
  require(l.kv_heads >= 1 && l.heads % l.kv_heads == 0, "num_heads is %d; it must be a multiple of kv_num_heads, %d",
          l.heads, l.kv_heads);
  require(l.chunk % kPlanKeys == 0 && l.chunk > 0, "chunk is %d; it must be a multiple of %d", l.chunk, kPlanKeys);
  require(l.batch <= kMaxPlanBatch, "%d sequences; at most %d are allowed", l.batch, kMaxPlanBatch);
  require((p.prefix_leader == nullptr) == (p.prefix_lens == nullptr),
          "prefix_leader and prefix_lens must be given together");
  // Numbers of units are ints, and so is the last of them.
  const AttentionPlanLayout layout(l);
  require(layout.items <= INT32_MAX / l.kv_heads && layout.slots <= INT32_MAX,
          "the plan of such a step has too many items");
  ptx::launch(attention_plan_kernel, dim3(1), dim3(kPlanThreads), attention_plan_smem(l.batch), stream, p,
              AttentionPlan(p.metadata, layout), int(layout.slots));
}

namespace {

AttentionLimits limits_of(const Arguments& a) {
  AttentionLimits l;
  l.batch = int(a.dim("batch")), l.tokens = int(a.integer("tokens"));
  l.heads = int(a.integer("num_heads")), l.kv_heads = int(a.integer("kv_num_heads"));
  l.max_length = int(a.integer("max_length")), l.pool_tokens = a.integer("pool_tokens");
  l.window = int(a.integer("local_window_size")), l.chunk = int(a.integer("chunk"));
  l.max_split_tokens = int(a.integer("max_split_tokens")), l.workers = attention_workers(a.integer("workers"));
  return l;
}

// Not needed to run: the answer is how large attention_metadata must be.
int64_t metadata_bytes(const Arguments& a) { return 4 * attention_metadata_ints(limits_of(a)); }

void run(const Arguments& a, void*, void* stream) {
  AttentionPlanParams p;
  p.limits = limits_of(a);
  const int64_t needed = attention_metadata_ints(p.limits);
  require(a.dim("metadata") >= needed, "attention_metadata has %lld elements; these limits need %lld",
          (long long)a.dim("metadata"), (long long)needed);
  p.cu_seqlens = a.data<const int>("cumulative_sequence_length"), p.past_lens = a.data<const int>("past_seqlens");
  p.prefix_leader = a.data<const int>("prefix_leader"), p.prefix_lens = a.data<const int>("prefix_lens");
  p.metadata = a.data<int>("attention_metadata");
  launch_attention_plan(p, stream);
}

}  // namespace

const Operator kAttentionPlan = {
    "attention_plan",
    "the work list of paged attention for one step, which all layers of one geometry read",
    {},
    {input("cumulative_sequence_length", "int32", {"batch+1"}, "start of each sequence in the step's tokens"),
     input("past_seqlens", "int32", {"batch"}, "tokens in the cache before this step"),
     optional_input("prefix_leader", "int32", {"batch"}, "sequence whose prefix this one shares; itself: none"),
     optional_input("prefix_lens", "int32", {"batch"}, "tokens shared with the leader: both have the same blocks there"),
     output("attention_metadata", "int32", {"metadata"}, "the work list, see attention_plan.cuh; what is left over is "
                                                         "not written")},
    {integer_attribute("tokens", 1, 0, 1 << 24, "rows of the step's query, padding included"),
     integer_attribute("num_heads", 1, 1, 1 << 16, "query heads"),
     integer_attribute("kv_num_heads", 1, 1, 1 << 16, "key heads; divides num_heads"),
     integer_attribute("max_length", 1, 1, 1 << 28, "columns of block_table times block_size"),
     integer_attribute("pool_tokens", 1, 1, int64_t(1) << 40, "blocks of the pools times block_size"),
     integer_attribute("local_window_size", -1, -1, 1 << 28, "keys that a query sees, its own included; -1: all"),
     integer_attribute("chunk", 512, 64, 1 << 24, "keys between two cuts; a multiple of 64"),
     integer_attribute("max_split_tokens", 8, 1, 1 << 24, "sequences with more new tokens are not split"),
     integer_attribute("workers", 0, 0, 1 << 16, "blocks that the work is dealt out to; 0: two a multiprocessor")},
    metadata_bytes,
    run,
    {"attention_metadata: at least as many bytes as slipway_workspace_bytes says (which may be asked with an "
     "attention_metadata of no elements)",
     "batch: at most 4096",
     "the attributes, the device and the lengths' tensors must be those of the paged_attention calls that read the plan"}};
REGISTER_OPERATOR(kAttentionPlan)

}  // namespace slipway
