#include "weight_only_gemm.hpp"

#include <algorithm>

#include "device.hpp"
#include "operator.hpp"


namespace slipway {
namespace {

// k is split until there are so many blocks, each of at least so many stages. Both are the same on every chip, so that
// results are too.
constexpr int64_t kBlocksWanted = 132, kLeastStages = 4;

int64_t slab_of(DType weight) { return weight == kUInt8 ? 64 : 32; }
int64_t rounded_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Splits {
  int64_t count, stages_each;
};
Splits splits_of(const Arguments& a) {
  const int64_t stages = rounded_up(a.dim("slabs"), kGemmSlabWarps);
  const int64_t tiles = rounded_up(a.dim("column_blocks"), kGemmColumnWarps);
  if (stages == 0 || tiles == 0) return {1, stages};
  const int64_t count = std::max<int64_t>(1, std::min(rounded_up(kBlocksWanted, tiles), stages / kLeastStages));
  const int64_t each = rounded_up(stages, count);
  return {rounded_up(stages, each), each};
}

int64_t workspace_bytes(const Arguments& a) {
  const Splits splits = splits_of(a);
  if (splits.count == 1) return 0;
  WorkspaceParts parts(nullptr);
  parts.take<float>(splits.count * a.dim("rows") * a.dim("column_blocks") * kGemmWarpColumns);
  return parts.bytes();
}

// What the symbols of the description cannot say.
void check(const Arguments& a) {
  const DType weight = a.type("Q");
  const long long k = a.dim("k"), n = a.dim("n"), slab = slab_of(weight), group = a.integer("group");
  require(k % 8 == 0, "k is %lld; it must be a multiple of 8", k);
  require(a.dim("slabs") == rounded_up(k, slab), "weight has %lld slabs of %lld; k is %lld, which needs %lld",
          (long long)a.dim("slabs"), slab, k, (long long)rounded_up(k, slab));
  require(a.dim("column_blocks") == rounded_up(n, kGemmWarpColumns),
          "weight has %lld blocks of 64 columns; n is %lld, which needs %lld", (long long)a.dim("column_blocks"), n,
          (long long)rounded_up(n, kGemmWarpColumns));
  require(group == 0 || group == 32 || group == 64 || group == 128, "group is %lld; allowed are 0, 32, 64 and 128",
          group);
  require(weight != kUInt8 || group > 0, "group is 0; int4 weights have groups of 32, 64 or 128");
  require(weight != kFloat8E4M3 || group == 0, "group is %lld; float8e4m3fn weights have scales per channel", group);
  require(a.has("scale") == (group > 0), group > 0 ? "group is %lld, but scale is absent"
                                                   : "group is %lld, but scale is given; it is for groups", group);
  require(a.has("channel_scale") == (group == 0), group == 0 ? "group is %lld, but channel_scale is absent"
                                                             : "group is %lld, but channel_scale is given", group);
  require(!a.has("zero_point") || weight == kUInt8, "zero_point is given; it is for int4 weights");
  require(group == 0 || a.dim("groups") == rounded_up(k, group), "scale has %lld groups; k is %lld, which needs %lld",
          (long long)a.dim("groups"), k, (long long)rounded_up(k, group ? group : 1));
  require(n <= INT32_MAX / 2 && k <= INT32_MAX / 2 && a.dim("rows") <= INT32_MAX / 2,
          "rows, k or n is beyond 2^30");
  require(rounded_up(n, kGemmColumns) <= 65535, "n is %lld; allowed are at most %d", n, 65535 * kGemmColumns);
}

void run(const Arguments& a, void* workspace, void* stream) {
  check(a);
  const DType type = a.type("T"), weight = a.type("Q");
  const Splits splits = splits_of(a);
  const int group = int(a.integer("group"));
  WeightOnlyGemmParams p;
  p.x = a.data<const void>("x");
  p.weight = static_cast<const uint8_t*>(a.data<const void>("weight"));
  p.scale = a.data<const void>("scale");
  p.zero = a.data<const uint8_t>("zero_point");
  p.channel_scale = a.data<const float>("channel_scale");
  p.bias = a.data<const void>("bias");
  p.y = a.data<void>("y");
  p.rows = int(a.dim("rows")), p.k = int(a.dim("k")), p.n = int(a.dim("n"));
  p.column_blocks = int(a.dim("column_blocks")), p.slabs = int(a.dim("slabs"));
  p.groups = group ? int(a.dim("groups")) : 0;
  p.slabs_in_group = std::max(1, group / int(slab_of(weight)));
  p.splits = int(splits.count), p.stages_in_split = int(splits.stages_each);
  if (p.rows == 0 || p.n == 0) return;
  WorkspaceParts parts(workspace);
  if (p.splits > 1) p.partial = parts.take<float>(int64_t(p.splits) * p.rows * p.padded_n());
  switch (weight) {
    case kUInt8: launch_weight_only_int4(p, type, group, stream); break;
    case kInt8: launch_weight_only_int8(p, type, stream); break;
    default: launch_weight_only_e4m3(p, type, stream);
  }
  if (p.splits == 1) return;
  const int64_t blocks = std::min<int64_t>(rounded_up(int64_t(p.rows) * p.n, 256), int64_t(device().sm_count) * 8);
  dispatch_half(type, [&](auto tag) {
    using T = typename decltype(tag)::type;
    ptx::launch_as(device().compute_capability >= 90, weight_only_merge_kernel<T>, dim3(unsigned(blocks)), dim3(256), 0,
                   stream, p);
  });
}

}  // namespace

const Operator kWeightOnlyGemm = {
    "weight_only_gemm",
    "y = x W + bias with W in 4 or 8 bits, for few rows",
    {{"T", {kFloat16, kBFloat16}}, {"Q", {kUInt8, kInt8, kFloat8E4M3}}},
    {input("x", "T", {"rows", "k"}, "the rows"),
     input("weight", "Q", {"column_blocks", "slabs", "2048"},
           "W [k, n] as plugins/weight_layout.py packs it: uint8 is int4, two to a byte"),
     optional_input("scale", "T", {"column_blocks", "groups", "64"}, "of each group of k and column, packed"),
     optional_input("zero_point", "uint8", {"column_blocks", "groups", "64"},
                    "0 to 15, packed like scale; of int4: W = (code - zero_point) * scale; absent: 8"),
     optional_input("channel_scale", "float32", {"n"}, "instead of scale where there are no groups"),
     optional_input("bias", "T", {"n"}, "added at the end"), output("y", "T", {"rows", "n"}, "the products")},
    {integer_attribute("group", 0, 0, 128, "consecutive k that share a scale; 0: all, a scale per channel")},
    workspace_bytes,
    run,
    {"rows: made for 1 to 64; more are right, but read the weights again for every 32", "k: a multiple of 8",
     "group: 32, 64 or 128 for int4; these or 0 for int8; 0 for float8e4m3fn"},
};
REGISTER_OPERATOR(kWeightOnlyGemm)

}  // namespace slipway
