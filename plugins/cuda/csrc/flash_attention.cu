// Operator flash_attention: what it takes, what is checked, and which form runs it.
#include <cmath>

#include "device.hpp"
#include "flash_attention.hpp"

namespace slipway {
namespace {

enum Form { kChoose = 0, kMma = 1, kSm90 = 2 };

constexpr int64_t kMaxHeads = 65535, kMaxHeadSize = 256;  // the grid's limit; the largest that is compiled

bool is_half(DType type) { return type == kFloat16 || type == kBFloat16; }

// What ptx::cp_async_16 and TMA copy begins at multiples of 16 bytes.
void require_chunks(const Arguments& a, const char* name, int64_t size) {
  const int64_t chunk = 16 / dtype_bytes(a.type("T"));
  require(size % chunk == 0 && size >= 1 && size <= kMaxHeadSize,
          "%s has head size %lld; it must be a multiple of %lld, at most %lld", name, (long long)size,
          (long long)chunk, (long long)kMaxHeadSize);
  for (int axis = 0; axis < 2; axis++)
    require(a.stride(name, axis) % chunk == 0,
            "%s has stride %lld on axis %d; it must be a multiple of %lld (16 bytes)", name,
            (long long)a.stride(name, axis), axis, (long long)chunk);
}

// Bias and sinks are read one by one: float32, or as the output.
bool is_float32(const Arguments& a, const char* name) {
  if (!a.has(name)) return false;
  const DType type = DType(a.tensor(name).dtype), output = a.type("O");
  require(type == kFloat32 || type == output, "%s is %s; allowed: float32, and %s as the output", name,
          std::string(dtype_name(type)).c_str(), dtype_name(output));
  return type == kFloat32;
}

Mask mask(const Arguments& a) {
  const bool causal = a.integer("causal") != 0;
  const int window_right = int(a.integer("window_right"));
  require(!causal || window_right <= 0, "window_right is %d with causal 1; it must be -1 or 0", window_right);
  const double scale = a.attribute("scale");
  return {int(a.integer("window_left")), causal ? 0 : window_right,
          float(scale > 0 ? scale : 1.0 / std::sqrt(double(a.dim("head_dim")))),
          float(a.attribute("softcap")), a.data<const float>("alibi_slopes")};
}

FlashAttentionParams params(const Arguments& a) {
  const DType type = a.type("T"), output = a.type("O");
  require(!is_half(type) || type == output, "output is %s; it must be %s as query",
          std::string(dtype_name(output)).c_str(), dtype_name(type));
  for (const char* name : {"query_scale", "key_scale", "value_scale"})
    require(!is_half(type) || !a.has(name), "%s is given with %s inputs; it is for float8e4m3fn", name,
            dtype_name(type));
  require_chunks(a, "query", a.dim("head_dim"));
  require_chunks(a, "key", a.dim("head_dim"));
  require_chunks(a, "value", a.dim("value_dim"));
  const int64_t heads = a.dim("heads"), kv_heads = a.dim("kv_heads");
  require(heads >= 1 && heads <= kMaxHeads && kv_heads >= 1 && heads % kv_heads == 0,
          "%lld heads and %lld kv_heads; heads must be a multiple of kv_heads, at most %lld",
          (long long)heads, (long long)kv_heads, (long long)kMaxHeads);
  for (const char* tokens : {"tokens_q", "tokens_k"})
    require(a.dim(tokens) < kMaxWindow, "%s is %lld; it must be below %d", tokens, (long long)a.dim(tokens),
            kMaxWindow);

  FlashAttentionParams p = {};
  p.query = a.data<const void>("query");
  p.key = a.data<const void>("key");
  p.value = a.data<const void>("value");
  p.query_row = a.stride("query", 0), p.query_head = a.stride("query", 1);
  p.key_row = a.stride("key", 0), p.key_head = a.stride("key", 1);
  p.value_row = a.stride("value", 0), p.value_head = a.stride("value", 1);
  p.output = a.data<void>("output");
  p.log_sum_exp = a.data<float>("log_sum_exp");
  p.cu_seqlens_q = a.data<const int>("cu_seqlens_q");
  p.cu_seqlens_k = a.data<const int>("cu_seqlens_k");
  p.mask = mask(a);
  if (a.has("bias")) {
    const slipway_tensor& bias = a.tensor("bias");
    p.bias = bias.data;
    p.bias_batch = bias.shape[0] == 1 ? 0 : bias.strides[0];
    p.bias_head = bias.shape[1] == 1 ? 0 : bias.strides[1];
    p.bias_query = bias.strides[2];
    p.max_q = int(a.dim("max_q")), p.max_k = int(a.dim("max_k"));
  }
  p.bias_is_float32 = is_float32(a, "bias");
  p.head_sink = a.data<const void>("head_sink");
  p.sink_is_float32 = is_float32(a, "head_sink");
  p.query_scale = a.data<const float>("query_scale");
  p.key_scale = a.data<const float>("key_scale");
  p.value_scale = a.data<const float>("value_scale");
  p.batch = int(a.dim("batch"));
  p.tokens_q = int(a.dim("tokens_q")), p.tokens_k = int(a.dim("tokens_k"));
  p.heads = int(heads), p.kv_heads = int(kv_heads);
  p.head_dim = int(a.dim("head_dim")), p.value_dim = int(a.dim("value_dim"));
  return p;
}

bool run_sm90(const FlashAttentionParams& p, DType type, DType output, void* stream) {
#ifdef SLIPWAY_ARCH_90A
  if (device().compute_capability != 90) return false;
  return is_half(type) ? launch_flash_attention_sm90(p, type, stream)
                       : launch_flash_attention_fp8_sm90(p, output, stream);
#else
  (void)p, (void)type, (void)output, (void)stream;
  return false;
#endif
}

void run(const Arguments& a, void*, void* stream) {
  const FlashAttentionParams p = params(a);
  const DType type = a.type("T"), output = a.type("O");
  const Form form = Form(a.integer("form"));
  const int chip = device().compute_capability;
  if (!is_half(type) && chip < 89)
    unsupported("float8e4m3fn inputs need compute capability 8.9; this device has %d.%d", chip / 10,
                chip % 10);
  if (p.tokens_q == 0) return;
  if (form != kMma && run_sm90(p, type, output, stream)) return;
  if (form == kSm90)
    unsupported(
        "form 2 needs a library with sm_90a, compute capability 9.0 (here %d.%d) and a call that it covers",
        chip / 10, chip % 10);
  if (is_half(type))
    launch_flash_attention(p, type, stream);
  else
    launch_flash_attention_fp8(p, output, stream);
}

}  // namespace

const Operator kFlashAttention = {
    "flash_attention",
    "attention of packed sequences to keys and values that are not in a cache",
    {{"T", {kFloat16, kBFloat16, kFloat8E4M3}},
     {"O", {kFloat16, kBFloat16}},
     {"B", {kFloat32, kFloat16, kBFloat16}},
     {"S", {kFloat32, kFloat16, kBFloat16}}},
    {strided(
         input("query", "T", {"tokens_q", "heads", "head_dim"}, "rows of all sequences, one after another")),
     strided(input("key", "T", {"tokens_k", "kv_heads", "head_dim"},
                   "query head h reads head h / (heads / kv_heads)")),
     strided(input("value", "T", {"tokens_k", "kv_heads", "value_dim"}, "as key")),
     input("cu_seqlens_q", "int32", {"batch+1"},
           "first row of each sequence in query, then their end; rows from there on: output 0, log_sum_exp "
           "-inf"),
     input("cu_seqlens_k", "int32", {"batch+1"},
           "the same for key and value; rows from the end on are not read"),
     optional_input("alibi_slopes", "float32", {"heads"}, "score -= slope * |position - key|"),
     strided(optional_input(
         "bias", "B", {"1|batch", "1|heads", "max_q", "max_k"},
         "added to the scores, by row within the sequence; -inf hides a key; float32, or as output")),
     optional_input("head_sink", "S", {"heads"},
                    "a logit that takes part in the softmax and has no value; float32, or as output"),
     optional_input("query_scale", "float32", {"heads"},
                    "FP8: what query's elements are to be multiplied by"),
     optional_input("key_scale", "float32", {"kv_heads"}, "FP8: the same for key"),
     optional_input("value_scale", "float32", {"kv_heads"}, "FP8: the same for value"),
     output("output", "O", {"tokens_q", "heads", "value_dim"}, "0 where a row sees no key"),
     optional_output("log_sum_exp", "float32", {"heads", "tokens_q"},
                     "natural logarithm of the softmax's denominator, the sink's part included")},
    {attribute("scale", 0, 0, 1e6, "factor of the dot products; 0: 1 / sqrt(head_dim)"),
     integer_attribute("causal", 0, 0, 1, "1: row i of a sequence sees keys up to i + keys - rows"),
     integer_attribute("window_left", -1, -1, kMaxWindow,
                       "w: only the w last of these, the row's own included; -1: all"),
     integer_attribute("window_right", -1, -1, kMaxWindow, "w: without causal, and the w next ones; -1: all"),
     attribute("softcap", 0, 0, 1e6, "c: score = c * tanh(score / c); 0: off"),
     integer_attribute("form", 0, 0, 2, "0: choose; 1: mma.sync, any chip; 2: TMA and WGMMA, sm_90a only")},
    no_workspace,
    run,
    {"head_dim, value_dim: multiples of 8 (float8e4m3fn: 16), at most 256; the larger one runs as 64, 128 or "
     "256",
     "strides of query, key, value: multiples of 16 bytes",
     "no sequence is longer than max_q and max_k of bias", "float8e4m3fn: from compute capability 8.9 on"}};
REGISTER_OPERATOR(kFlashAttention)

}  // namespace slipway
