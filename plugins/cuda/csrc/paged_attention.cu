#include "paged_attention.hpp"

#include <cmath>
#include <cstdint>

#include "attention_plan.hpp"
#include "dispatch.hpp"
#include "kv_write.hpp"
#include "operator.hpp"

namespace slipway {
namespace {

AttentionLimits limits_of(const Arguments& a) {
  AttentionLimits l;
  l.batch = int(a.dim("batch")), l.tokens = int(a.dim("tokens"));
  l.heads = int(a.integer("num_heads")), l.kv_heads = int(a.integer("kv_num_heads"));
  l.max_length = int(a.dim("max_blocks") * a.dim("block_size"));
  l.pool_tokens = a.dim("num_blocks") * a.dim("block_size");
  l.window = int(a.integer("local_window_size")), l.chunk = int(a.integer("chunk"));
  l.max_split_tokens = int(a.integer("max_split_tokens")), l.workers = attention_workers(a.integer("workers"));
  return l;
}

// Query, key and value may lie side by side in the rows of `query`.
bool is_packed(const Arguments& a) {
  return !a.has("key") &&
         a.dim("query_columns") == (a.integer("num_heads") + 2 * a.integer("kv_num_heads")) * a.dim("head_dim");
}
bool turns_query(const Arguments& a) { return a.integer("do_rotary") != 0 || a.has("q_norm_weight"); }

struct Workspace {
  int* metadata;
  float *partial_output, *partial_state;
  void* query;
  int64_t bytes;

  Workspace(const Arguments& a, void* base) {
    const AttentionLimits l = limits_of(a);
    const AttentionPlanLayout layout(l);
    WorkspaceParts parts(base);
    metadata = parts.take<int>(a.has("attention_metadata") ? 0 : layout.ints);
    partial_output = parts.take<float>(layout.slots * l.heads * a.dim("value_dim"));
    partial_state = parts.take<float>(layout.slots * l.heads * 2);
    query = parts.take<uint16_t>(turns_query(a) ? int64_t(l.tokens) * l.heads * a.dim("head_dim") : 0);
    bytes = parts.bytes();
  }
};

void check(const Arguments& a) {
  const int64_t heads = a.integer("num_heads"), kv_heads = a.integer("kv_num_heads"), size = a.dim("head_dim");
  const int64_t value_size = a.dim("value_dim"), block = a.dim("block_size"), columns = a.dim("query_columns");
  require(heads % kv_heads == 0, "num_heads is %lld; it must be a multiple of kv_num_heads, %lld", (long long)heads,
          (long long)kv_heads);
  require(a.dim("kv_heads") == kv_heads, "key_cache has %lld heads, kv_num_heads is %lld", (long long)a.dim("kv_heads"),
          (long long)kv_heads);
  require(block >= 16 && block <= 256 && (block & (block - 1)) == 0,
          "block_size is %lld; allowed are 16, 32, 64, 128 and 256", (long long)block);
  for (const auto& [name, dim] : {std::pair<const char*, int64_t>{"head_dim", size}, {"value_dim", value_size}})
    require(dim % 8 == 0 && dim >= 8 && dim <= 256, "%s is %lld; it must be a multiple of 8, at most 256", name,
            (long long)dim);
  require(a.has("key") == a.has("value"), "key and value must be given together");
  require(columns == heads * size || (is_packed(a) && value_size == size),
          "query has %lld columns; allowed are num_heads * head_dim = %lld, and without key and value (num_heads + 2 * "
          "kv_num_heads) * head_dim, where value_dim is head_dim",
          (long long)columns, (long long)(heads * size));
  require(a.stride("query", 0) % 8 == 0 || a.dim("tokens") <= 1, "query has stride %lld; it must be a multiple of 8",
          (long long)a.stride("query", 0));
  require(!a.has("key") || a.dim("key_columns") == kv_heads * size, "key has %lld columns instead of %lld",
          (long long)a.dim("key_columns"), (long long)(kv_heads * size));
  require(!a.has("value") || a.dim("value_columns") == kv_heads * value_size, "value has %lld columns instead of %lld",
          (long long)a.dim("value_columns"), (long long)(kv_heads * value_size));
  require(a.dim("output_columns") == heads * value_size, "output has %lld columns instead of %lld",
          (long long)a.dim("output_columns"), (long long)(heads * value_size));
  require(!a.has("log_sum_exp") || a.tensor("log_sum_exp").shape[1] == heads,
          "log_sum_exp has %lld columns instead of %lld", (long long)a.tensor("log_sum_exp").shape[1], (long long)heads);
  for (const char* name : {"head_sink", "alibi_slopes"})
    require(!a.has(name) || a.tensor(name).shape[0] == heads, "%s has %lld elements instead of %lld", name,
            (long long)a.tensor(name).shape[0], (long long)heads);
  const bool writes = a.has("key") || is_packed(a), rotates = a.integer("do_rotary") != 0;
  require(!writes || a.has("slot_mapping"), "new keys are given without slot_mapping");
  require(!rotates || (a.has("cos_cache") && a.has("sin_cache") && a.has("position_ids")),
          "do_rotary is 1, which needs cos_cache, sin_cache and position_ids");
  const bool quantized = a.type("C") == kInt8 || a.type("C") == kFloat8E4M3;
  require(quantized || a.type("C") == a.type("T"), "key_cache is %s; allowed are int8, float8e4m3fn and query's type, %s",
          dtype_name(a.type("C")), std::string(dtype_name(a.type("T"))).c_str());
  const bool fixed = a.has("k_scale") && a.has("v_scale"), by_token = a.has("k_token_scale") && a.has("v_token_scale");
  const bool any = a.has("k_scale") || a.has("v_scale") || a.has("k_token_scale") || a.has("v_token_scale");
  require(quantized ? fixed != by_token : !any,
          "pools of %s need either k_scale and v_scale or k_token_scale and v_token_scale; 16-bit pools neither",
          dtype_name(a.type("C")));
  require(a.has("prefix_leader") == a.has("prefix_lens"), "prefix_leader and prefix_lens must be given together");
  const int64_t ints = attention_metadata_ints(limits_of(a));
  require(!a.has("attention_metadata") || a.dim("metadata") >= ints,
          "attention_metadata has %lld elements; a plan for this call has %lld", (long long)a.dim("metadata"),
          (long long)ints);
  require(a.integer("chunk") % kPlanKeys == 0, "chunk is %lld; it must be a multiple of %d",
          (long long)a.integer("chunk"), kPlanKeys);
}

int scale_stride(const Arguments& a, const char* name) { return a.has(name) && a.tensor(name).shape[0] > 1; }

// First phase: norms, rotary embedding, new keys and values to the pools, turned queries to `query_out`.
void write_pools(const Arguments& a, void* query_out, void* stream) {
  const bool packed = is_packed(a), writes = a.has("key") || packed;
  if (!writes && query_out == nullptr) return;
  const int64_t size = a.dim("head_dim"), value_size = a.dim("value_dim"), heads = a.integer("num_heads");
  const int64_t kv_heads = a.integer("kv_num_heads"), query_row = a.stride("query", 0);
  KvWriteParams p;
  p.tokens = int(a.dim("tokens")), p.kv_heads = writes ? int(kv_heads) : 0;
  p.key_dim = int(size), p.value_dim = int(value_size);
  const char* query = a.data<char>("query");
  p.key = packed ? query + 2 * heads * size : a.data<char>("key");
  p.value = packed ? query + 2 * (heads + kv_heads) * size : a.data<char>("value");
  p.key_token_stride = packed ? query_row : a.stride("key", 0), p.key_head_stride = size;
  p.value_token_stride = packed ? query_row : a.stride("value", 0), p.value_head_stride = value_size;
  p.key_cache = a.data("key_cache"), p.value_cache = a.data("value_cache");
  p.slot_mapping = a.data<const int32_t>("slot_mapping");
  p.num_slots = a.dim("num_blocks") * a.dim("block_size");
  p.live_tokens = a.data<const int32_t>("cumulative_sequence_length") + a.dim("batch");
  p.key_scale = a.data<const float>("k_scale"), p.value_scale = a.data<const float>("v_scale");
  p.key_scale_stride = scale_stride(a, "k_scale"), p.value_scale_stride = scale_stride(a, "v_scale");
  p.key_token_scale = a.data<float>("k_token_scale"), p.value_token_scale = a.data<float>("v_token_scale");
  if (a.integer("do_rotary"))
    p.rotary = {a.data("cos_cache"), a.data("sin_cache"), a.type("cos_cache") == kFloat32,
                a.integer("rotary_interleaved") != 0, int(2 * a.dim("rotary_pairs")), a.dim("max_positions")};
  p.position_ids = a.data<const int32_t>("position_ids");
  p.key_norm_weight = a.data<const void>("k_norm_weight");
  p.query_norm_weight = a.data<const void>("q_norm_weight");
  p.epsilon = float(a.attribute("norm_epsilon"));
  if (query_out != nullptr) {
    p.query = query, p.query_out = query_out, p.heads = int(heads);
    p.query_token_stride = query_row, p.query_out_token_stride = heads * size;
    p.query_head_stride = p.query_out_head_stride = size;
  }
  launch_kv_write(p, a.type("T"), a.type("C"), stream);
}

PagedAttentionParams params_of(const Arguments& a, const Workspace& w) {
  PagedAttentionParams p = {};
  p.query = turns_query(a) ? w.query : a.data("query");
  p.query_row = turns_query(a) ? a.integer("num_heads") * a.dim("head_dim") : a.stride("query", 0);
  p.key_cache = a.data("key_cache"), p.value_cache = a.data("value_cache");
  p.token_scales = a.has("k_token_scale");
  p.key_scale = a.data<const float>(p.token_scales ? "k_token_scale" : "k_scale");
  p.value_scale = a.data<const float>(p.token_scales ? "v_token_scale" : "v_scale");
  p.key_scale_stride = scale_stride(a, "k_scale"), p.value_scale_stride = scale_stride(a, "v_scale");
  p.cu_seqlens = a.data<const int>("cumulative_sequence_length"), p.past_lens = a.data<const int>("past_seqlens");
  p.block_table = a.data<const int>("block_table"), p.head_sink = a.data("head_sink");
  p.tree_mask = a.data<const unsigned char>("tree_mask"), p.max_new = int(a.dim("max_new"));
  const double scale = a.attribute("scale");
  p.mask.window_left = int(a.integer("local_window_size")), p.mask.window_right = 0;
  p.mask.scale = float(scale > 0 ? scale : 1.0 / std::sqrt(double(a.dim("head_dim"))));
  p.mask.softcap = float(a.attribute("softcap"));
  p.mask.alibi_slopes = a.data<const float>("alibi_slopes");
  p.output = a.data("output"), p.log_sum_exp = a.data<float>("log_sum_exp");
  p.limits = limits_of(a);
  p.plan = AttentionPlan(a.has("attention_metadata") ? a.data<int>("attention_metadata") : w.metadata,
                         AttentionPlanLayout(p.limits));
  p.partial_output = w.partial_output, p.partial_state = w.partial_state;
  p.num_blocks = int(a.dim("num_blocks")), p.max_blocks = int(a.dim("max_blocks"));
  while ((int64_t(1) << p.block_shift) < a.dim("block_size")) p.block_shift++;
  p.key_dim = int(a.dim("head_dim")), p.value_dim = int(a.dim("value_dim"));
  return p;
}

int64_t workspace_bytes(const Arguments& a) {
  check(a);
  return Workspace(a, nullptr).bytes;
}

void run(const Arguments& a, void* workspace, void* stream) {
  check(a);
  if (a.dim("tokens") == 0) return;
  const Workspace parts(a, workspace);
  write_pools(a, turns_query(a) ? parts.query : nullptr, stream);
  const PagedAttentionParams p = params_of(a, parts);
  if (!a.has("attention_metadata"))
    launch_attention_plan({p.cu_seqlens, p.past_lens, a.data<const int>("prefix_leader"),
                           a.data<const int>("prefix_lens"), parts.metadata, p.limits},
                          stream);
  dispatch_half(a.type("T"), [&](auto tag) {
    using T = typename decltype(tag)::type;
    switch (a.type("C")) {
      case kInt8: return launch_paged_attention<T, PoolKind::kInt8>(p, stream);
      case kFloat8E4M3: return launch_paged_attention<T, PoolKind::kE4M3>(p, stream);
      default: return launch_paged_attention<T, PoolKind::k16Bit>(p, stream);
    }
  });
}

const std::vector<std::string> kTokenScale = {"num_blocks", "block_size", "kv_heads"};

}  // namespace

const Operator kPagedAttention = {
    "paged_attention",
    "new keys and values to the pools, then causal attention of each new token to its own sequence through the block "
    "table; decode, prefill and chunks of a prompt may be mixed in one step",
    {{"T", {kFloat16, kBFloat16}}, {"C", {kFloat16, kBFloat16, kInt8, kFloat8E4M3}}, {"R", {kFloat32, kFloat16, kBFloat16}}},
    {strided(input("query", "T", {"tokens", "query_columns"},
                   "[tokens, num_heads * head_dim], or packed query, key and value, with key and value absent")),
     strided(optional_input("key", "T", {"tokens", "key_columns"}, "new keys; absent: the pools have them already")),
     strided(optional_input("value", "T", {"tokens", "value_columns"}, "new values")),
     inout("key_cache", "C", {"num_blocks", "block_size", "kv_heads", "head_dim"}, "key pool"),
     inout("value_cache", "C", {"num_blocks", "block_size", "kv_heads", "value_dim"}, "value pool"),
     input("cumulative_sequence_length", "int32", {"batch+1"}, "start of each sequence; first 0; rows from the last "
                                                               "element on are padding, whose output is zero"),
     input("past_seqlens", "int32", {"batch"}, "tokens in the cache before this step"),
     input("block_table", "int32", {"batch", "max_blocks"}, "blocks of each sequence; not read beyond its end, nor "
                                                            "where a window has passed"),
     optional_input("cos_cache", "R", {"max_positions", "rotary_pairs"}, "with do_rotary; float32 or query's type"),
     optional_input("sin_cache", "R", {"max_positions", "rotary_pairs"}, "as cos_cache"),
     optional_input("slot_mapping", "int32", {"tokens"}, "with new keys: block * block_size + offset; negative: not "
                                                         "written"),
     optional_input("head_sink", "T", {"sink_heads"}, "[num_heads] one more logit in each head's softmax"),
     optional_input("q_norm_weight", "T", {"head_dim"}, "RMS norm of each query head before the rotary embedding"),
     optional_input("k_norm_weight", "T", {"head_dim"}, "the same for new keys"),
     optional_input("k_scale", "float32", {"1|kv_heads"}, "8-bit pools: key = k_scale * its 8-bit value"),
     optional_input("v_scale", "float32", {"1|kv_heads"}, "the same for values"),
     optional_input("attention_metadata", "int32", {"metadata"}, "the step's work list by attention_plan; absent: made "
                                                                 "here"),
     optional_input("position_ids", "int32", {"tokens"}, "with do_rotary: rows of cos_cache"),
     optional_input("alibi_slopes", "float32", {"alibi_heads"}, "[num_heads] score += slope * (key - query position)"),
     optional_input("tree_mask", "bool", {"tokens", "max_new"}, "a new token sees new token j of its sequence, not "
                                                                "behind itself, only where this is true"),
     optional_input("prefix_leader", "int32", {"batch"}, "without attention_metadata: sequence whose prefix this one "
                                                         "shares; itself: none"),
     optional_input("prefix_lens", "int32", {"batch"}, "tokens shared with the leader: both have the same blocks there"),
     optional_inout("k_token_scale", "float32", kTokenScale, "8-bit pools, instead of k_scale: a scale a token, written "
                                                             "for new ones"),
     optional_inout("v_token_scale", "float32", kTokenScale, "the same for values"),
     output("output", "T", {"tokens", "output_columns"}, "[tokens, num_heads * value_dim]"),
     optional_output("log_sum_exp", "float32", {"tokens", "lse_heads"}, "[tokens, num_heads] natural logarithm of the "
                                                                        "softmax's denominator, sink included; -inf in "
                                                                        "the padding")},
    {integer_attribute("num_heads", 1, 1, 1 << 16, "query heads"),
     integer_attribute("kv_num_heads", 1, 1, 1 << 16, "key and value heads; divides num_heads"),
     attribute("scale", 0, 0, 1e4, "factor of the scores; 0: 1 / sqrt(head_dim)"),
     attribute("softcap", 0, 0, 1e6, "c: scores become c * tanh(score / c); 0: off"),
     integer_attribute("do_rotary", 0, 0, 1, "turn query and key by cos_cache and sin_cache"),
     integer_attribute("rotary_interleaved", 0, 0, 1, "pairs are (0, 1), (2, 3), ..., not first with second half"),
     integer_attribute("local_window_size", -1, -1, 1 << 28, "w: a query sees the w last keys, its own included; -1: all"),
     integer_attribute("chunk", 512, 64, 1 << 24, "keys between two cuts of a sequence; a multiple of 64"),
     integer_attribute("max_split_tokens", 8, 1, 1 << 24, "sequences with more new tokens are not split"),
     integer_attribute("workers", 0, 0, 1 << 16, "blocks that the work is dealt out to; 0: two a multiprocessor"),
     attribute("norm_epsilon", 1e-6, 0, 1, "added to the mean square by the norms")},
    workspace_bytes,
    run,
    {"head_dim, value_dim: multiples of 8, at most 256", "block_size: 16, 32, 64, 128, 256",
     "key_cache: of query's type, int8 or float8e4m3fn; 8-bit pools have k_scale and v_scale or k_token_scale and "
     "v_token_scale",
     "a sequence's result does not depend on the other sequences of the step, unless they share so many blocks that "
     "their partial results exceed the workspace: then all are cut at larger chunks",
     "block_table is checked in debug builds alone; a block out of range counts as zeros"}};
REGISTER_OPERATOR(kPagedAttention)

}  // namespace slipway
