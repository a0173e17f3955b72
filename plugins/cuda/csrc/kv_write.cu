#include "kv_write.hpp"

#include <algorithm>
#include <cstdint>
#include <string>

#include "dispatch.hpp"
#include "slipway/kv_write_kernel.cuh"

namespace slipway {
namespace {

// The widest access of at most 16 bytes that all of `bytes` (addresses, strides, offsets, lengths) allow.
int widest_access(std::initializer_list<int64_t> bytes) {
  int64_t all = 16;
  for (int64_t b : bytes) all |= b;
  return int(all & -all);
}
int64_t address(const void* p) { return int64_t(reinterpret_cast<uintptr_t>(p)); }

int stride_of(int64_t stride) {
  require(stride >= 0 && stride <= INT32_MAX, "a stride of %lld elements; allowed are 0 to 2^31 - 1",
          (long long)stride);
  return int(stride);
}

KvWritePlan plan_of(const KvWriteParams& p, int64_t new_bytes, int64_t pool_bytes) {
  const RotaryTable& r = p.rotary;
  const int lanes = std::max({kv_write::lanes_of(p.key_dim, r.rotary_dim, r.interleaved),
                              kv_write::lanes_of(p.value_dim, 0, false), 1});
  KvWritePlan plan = {};
  while ((1 << plan.lanes_log2) < lanes) plan.lanes_log2++;
  plan.heads_of_token = p.heads + 2 * p.kv_heads;

  const int pool_row = p.kv_heads;  // heads of a slot
  KvWritePart& query = plan.parts[0];
  query.source = p.query, query.target = p.query_out, query.weight = p.query_norm_weight;
  query.token_stride = stride_of(p.query_token_stride), query.head_stride = stride_of(p.query_head_stride);
  query.target_token_stride = stride_of(p.query_out_token_stride);
  query.target_head_stride = stride_of(p.query_out_head_stride);
  query.size = p.key_dim, query.rotary_dim = r.rotary_dim, query.first_head = 0;

  KvWritePart& key = plan.parts[1];
  key.source = p.key, key.target = p.key_cache, key.weight = p.key_norm_weight;
  key.token_stride = stride_of(p.key_token_stride), key.head_stride = stride_of(p.key_head_stride);
  key.target_token_stride = stride_of(int64_t(pool_row) * p.key_dim), key.target_head_stride = p.key_dim;
  key.scale = p.key_scale, key.scale_stride = int(p.key_scale_stride), key.token_scale = p.key_token_scale;
  key.size = p.key_dim, key.rotary_dim = r.rotary_dim, key.first_head = p.heads;

  KvWritePart& value = plan.parts[2];
  value.source = p.value, value.target = p.value_cache;
  value.token_stride = stride_of(p.value_token_stride), value.head_stride = stride_of(p.value_head_stride);
  value.target_token_stride = stride_of(int64_t(pool_row) * p.value_dim),
  value.target_head_stride = p.value_dim;
  value.scale = p.value_scale, value.scale_stride = int(p.value_scale_stride);
  value.token_scale = p.value_token_scale;
  value.size = p.value_dim, value.rotary_dim = 0, value.first_head = p.heads + p.kv_heads;

  for (KvWritePart& part : plan.parts) {
    // Runs begin and end at multiples of 8 elements, at halves of rotary_dim, and at the end of the head.
    const int64_t half = r.interleaved ? 0 : part.rotary_dim / 2;
    auto widest = [&](const void* data, int64_t token_stride, int64_t head_stride, int64_t bytes) {
      return widest_access({address(data), token_stride * bytes, head_stride * bytes, half * bytes,
                            2 * half * bytes, part.size * bytes, kRun * bytes});
    };
    part.access = widest(part.source, part.token_stride, part.head_stride, new_bytes);
    part.target_access = widest(part.target, part.target_token_stride, part.target_head_stride,
                                &part == &query ? new_bytes : pool_bytes);
    part.weight_access = widest(part.weight, 0, 0, new_bytes);
    plan.norm = plan.norm || part.weight != nullptr;
    plan.by_token = plan.by_token || part.token_scale != nullptr;
  }
  const int64_t table_bytes = r.float_table ? int64_t(sizeof(float)) : new_bytes;
  plan.table_access =
      widest_access({address(r.cos), address(r.sin), r.rotary_dim / 2 * table_bytes, kRun * table_bytes});
  return plan;
}

void check(const KvWriteParams& p, DType pool_type) {
  require(p.key_dim >= 1 && p.key_dim <= kMaxKvHeadSize, "key_dim is %d; allowed are 1 to %d", p.key_dim,
          kMaxKvHeadSize);
  require(p.value_dim >= 1 && p.value_dim <= kMaxKvHeadSize, "value_dim is %d; allowed are 1 to %d",
          p.value_dim, kMaxKvHeadSize);
  const int rotary_dim = p.rotary.rotary_dim;
  require(rotary_dim % 2 == 0 && rotary_dim >= 0 && rotary_dim <= p.key_dim,
          "rotary_dim is %d; it must be even and at most key_dim, %d", rotary_dim, p.key_dim);
  require(rotary_dim == 0 || p.position_ids != nullptr || p.tokens == 0,
          "cos and sin are given without position_ids");
  const bool quantized = pool_type == kInt8 || pool_type == kFloat8E4M3;
  const bool fixed = p.key_scale != nullptr && p.value_scale != nullptr;
  const bool by_token = p.key_token_scale != nullptr && p.value_token_scale != nullptr;
  const bool some = p.key_scale != nullptr || p.value_scale != nullptr || p.key_token_scale != nullptr ||
                    p.value_token_scale != nullptr;
  const bool half = (p.key_scale != nullptr) != (p.value_scale != nullptr) ||
                    (p.key_token_scale != nullptr) != (p.value_token_scale != nullptr);
  require(quantized || !some, "scales are given, but pools of %s are not quantized", dtype_name(pool_type));
  require(!quantized || (fixed != by_token && !half),
          "pools of %s need either key_scale and value_scale or key_token_scale and value_token_scale",
          dtype_name(pool_type));
}

template <class T, class C>
void launch(const KvWriteParams& p, void* stream) {
  const KvWritePlan plan = plan_of(p, sizeof(T), sizeof(C));
  const int64_t threads = (int64_t(p.tokens) * (p.heads + 2 * p.kv_heads)) << plan.lanes_log2;
  require(threads <= INT32_MAX, "%d tokens are too many for one launch", p.tokens);
  const int64_t blocks = (threads + kKvWriteThreads - 1) / kKvWriteThreads;
  ptx::launch(kv_write_kernel<T, C>, dim3(unsigned(blocks)), dim3(kKvWriteThreads), 0, stream, p, plan);
}

}  // namespace

void launch_kv_write(const KvWriteParams& p, DType new_type, DType pool_type, void* stream) {
  check(p, pool_type);
  if (p.tokens == 0 || p.heads + p.kv_heads == 0) return;
  dispatch_float(new_type, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (pool_type == new_type) return launch<T, T>(p, stream);
    if (pool_type == kInt8) return launch<T, int8_t>(p, stream);
    if (pool_type == kFloat8E4M3) return launch<T, e4m3>(p, stream);
    if constexpr (sizeof(T) == sizeof(float)) {  // float32 also goes to 16-bit pools
      if (pool_type == kFloat16) return launch<T, __half>(p, stream);
      if (pool_type == kBFloat16) return launch<T, __nv_bfloat16>(p, stream);
    }
    require(false, "keys of %s cannot go to pools of %s", std::string(dtype_name(new_type)).c_str(),
            dtype_name(pool_type));
  });
}

namespace {

void run(const Arguments& a, void*, void* stream) {
  KvWriteParams p;
  p.key = a.data<const void>("key"), p.value = a.data<const void>("value");
  p.key_token_stride = a.stride("key", 0), p.key_head_stride = a.stride("key", 1);
  p.value_token_stride = a.stride("value", 0), p.value_head_stride = a.stride("value", 1);
  p.key_cache = a.data("key_cache"), p.value_cache = a.data("value_cache");
  p.slot_mapping = a.data<const int32_t>("slot_mapping");
  p.num_slots = a.dim("num_blocks") * a.dim("block_size");
  if (a.has("cu_seqlens")) p.live_tokens = a.data<const int32_t>("cu_seqlens") + a.dim("batch");
  p.key_scale = a.data<const float>("key_scale"), p.value_scale = a.data<const float>("value_scale");
  p.key_scale_stride = p.key_scale && a.tensor("key_scale").shape[0] > 1;
  p.value_scale_stride = p.value_scale && a.tensor("value_scale").shape[0] > 1;
  p.key_token_scale = a.data<float>("key_token_scale"),
  p.value_token_scale = a.data<float>("value_token_scale");
  require(a.has("cos") == a.has("sin"), "cos and sin must be given together");
  if (a.has("cos")) {
    require(a.type("cos") == kFloat32 || a.type("cos") == a.type("T"),
            "cos is %s; allowed are float32 and key's type", dtype_name(a.type("cos")));
    const bool interleaved = a.integer("rotary_interleaved") != 0;
    p.rotary = {a.data("cos"), a.data("sin"), a.type("cos") == kFloat32, interleaved,
                int(2 * a.dim("rotary_pairs")), a.dim("max_positions")};
  }
  p.position_ids = a.data<const int32_t>("position_ids");
  p.key_norm_weight = a.data<const void>("key_norm_weight");
  p.query_norm_weight = a.data<const void>("query_norm_weight");
  p.epsilon = float(a.attribute("epsilon"));
  require(a.has("query") == a.has("query_out"), "query and query_out must be given together");
  require(a.has("query") || !a.has("query_norm_weight"), "query_norm_weight is given without query");
  if (a.has("query")) {
    p.query = a.data<const void>("query"), p.query_out = a.data("query_out");
    p.query_token_stride = a.stride("query", 0), p.query_head_stride = a.stride("query", 1);
    p.query_out_token_stride = a.stride("query_out", 0), p.query_out_head_stride = a.stride("query_out", 1);
  }
  p.tokens = int(a.dim("tokens")), p.kv_heads = int(a.dim("kv_heads")), p.heads = int(a.dim("heads"));
  p.key_dim = int(a.dim("key_dim")), p.value_dim = int(a.dim("value_dim"));
  launch_kv_write(p, a.type("T"), a.type("C"), stream);
}

const std::vector<std::string> kTokenScale = {"num_blocks", "block_size", "kv_heads"};

}  // namespace

const Operator kKvWrite = {
    "kv_write",
    "new keys and values to their slots of the pools: RMS norm, rotary embedding and quantization on the "
    "way; queries are turned in the same launch",
    {{"T", {kFloat16, kBFloat16, kFloat32}},
     {"C", {kFloat16, kBFloat16, kFloat32, kInt8, kFloat8E4M3}},
     {"R", {kFloat32, kFloat16, kBFloat16}}},
    {strided(input("key", "T", {"tokens", "kv_heads", "key_dim"}, "new keys")),
     strided(input("value", "T", {"tokens", "kv_heads", "value_dim"}, "new values")),
     inout("key_cache", "C", {"num_blocks", "block_size", "kv_heads", "key_dim"}, "key pool"),
     inout("value_cache", "C", {"num_blocks", "block_size", "kv_heads", "value_dim"}, "value pool"),
     input("slot_mapping", "int32", {"tokens"}, "block * block_size + offset; negative: nothing is written"),
     optional_input("cu_seqlens", "int32", {"batch+1"},
                    "rows from the last element on are padding, left alone"),
     optional_input("position_ids", "int32", {"tokens"}, "rows of cos and sin; needed with them"),
     optional_input("cos", "R", {"max_positions", "rotary_pairs"},
                    "float32 or T; elements from 2 * rotary_pairs on pass through"),
     optional_input("sin", "R", {"max_positions", "rotary_pairs"}, "as cos"),
     optional_input("key_scale", "float32", {"1|kv_heads"}, "quantized pools hold round(x * (1 / scale))"),
     optional_input("value_scale", "float32", {"1|kv_heads"}, "the same"),
     optional_inout("key_token_scale", "float32", kTokenScale,
                    "instead: each row's max |x| / (127 or 448), written"),
     optional_inout("value_token_scale", "float32", kTokenScale, "the same"),
     optional_input("key_norm_weight", "T", {"key_dim"},
                    "x / sqrt(mean(x^2) + epsilon) * weight before the rotary"),
     optional_input("query_norm_weight", "T", {"key_dim"}, "the same"),
     strided(optional_input("query", "T", {"tokens", "heads", "key_dim"},
                            "queries to turn; may lie in query_out")),
     strided(optional_inout("query_out", "T", {"tokens", "heads", "key_dim"},
                            "normed and turned queries; rows of padding stay"))},
    {integer_attribute("rotary_interleaved", 0, 0, 1,
                       "pairs are (0, 1), (2, 3), ..., not first with second half"),
     attribute("epsilon", 1e-6, 0, 1, "added to the mean square")},
    no_workspace,
    run,
    {"key_dim, value_dim: 1 to 512", "2 * rotary_pairs: at most key_dim",
     "C: T, int8 or float8e4m3fn; float32 keys also go to 16-bit pools",
     "slots that are written must differ; slots and positions are checked in debug builds alone"}};
REGISTER_OPERATOR(kKvWrite)

}  // namespace slipway
