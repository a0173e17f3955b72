#include "slipway/speculative.cuh"

#include "dispatch.hpp"
#include "sampling_distribution.hpp"

namespace slipway {
namespace {

using namespace sampling;

struct Call {
  Rows rows;
  Division division;
  Workspace workspace;
  Target* targets;
  int64_t bytes;
};

Call call_of(const Arguments& a, void* memory) {
  Call c;
  const int64_t vocab = a.dim("vocab"), rows = a.dim("batch") * (a.dim("drafts") + 1);
  c.division = divide(rows, vocab);
  WorkspaceParts parts(memory);
  c.workspace = take_workspace(parts, c.division, rows, vocab, a.has("allowed_tokens"));
  c.targets = parts.take<Target>(rows);
  c.bytes = parts.bytes();
  Rows& p = c.rows;
  p = rows_of(a, rows);
  p.rows_per_request = int(a.dim("drafts")) + 1;
  return c;
}

int64_t workspace(const Arguments& a) {
  check_allowed_tokens(a);
  return call_of(a, nullptr).bytes;
}

void run(const Arguments& a, void* memory, void* stream) {
  check_allowed_tokens(a);
  const Call c = call_of(a, memory);
  const Rows& p = c.rows;
  if (p.rows == 0) return;
  launch_distribution(p, c.division, c.workspace, a.type("T"), stream);
  Speculation s;
  s.draft_tokens = a.data<const int32_t>("draft_tokens"), s.draft_probs = a.data<const float>("draft_probs");
  s.drafts = int(a.dim("drafts"));
  s.seed = a.data<const u64>("seed"), s.position = a.data<const int32_t>("position");
  s.targets = c.targets;
  s.accepted = a.data<int32_t>("accepted"), s.tokens = a.data<int32_t>("tokens");
  const dim3 block = dim3(unsigned(c.division.finish_warps * 32));
  dispatch_float(a.type("T"), [&](auto tag) {
    using T = typename decltype(tag)::type;
    ptx::launch(target_kernel<T>, dim3(unsigned(p.rows)), block, size_t(finish_shared_bytes(c.division)), stream, p,
                c.division, c.workspace, c.targets);
    ptx::launch(accept_kernel<T>, dim3(unsigned(a.dim("batch"))), block, size_t(c.division.segments) * sizeof(u64),
                stream, p, c.division, c.workspace, s);
  });
}

}  // namespace

const Operator kSpeculative = {
    "speculative",
    "drafted tokens are accepted with probability min(1, target / draft); one token of the target follows them",
    {{"T", {kFloat32, kFloat16, kBFloat16}}},
    {input("logits", "T", {"batch", "drafts+1", "vocab"}, "the target's; row i is what follows i drafts"),
     input("draft_tokens", "int32", {"batch", "drafts"}, "after a request's last draft -1"),
     input("seed", "uint64", {"batch"}, "key of the request's random numbers"),
     input("position", "int32", {"batch"}, "index of the first output token of this step"),
     output("accepted", "int32", {"batch"}, "how many drafts"),
     output("tokens", "int32", {"batch", "drafts+1"},
            "accepted drafts, one more token, then -1; the one more is -1 where logits are unusable"),
     optional_input("draft_probs", "float32", {"batch", "drafts", "vocab"},
                    "distributions that drafts were drawn from; absent: drafts are certain (greedy, n-gram)"),
     optional_input("temperature", "float32", {"batch"}, "1 where absent; 0: drafts must be the likeliest tokens"),
     optional_input("top_k", "int32", {"batch"}, "of the target; 0: off"),
     optional_input("top_p", "float32", {"batch"}, "of the target; 1: off"),
     optional_input("min_p", "float32", {"batch"}, "of the target; 0: off"),
     optional_input("allowed_tokens", "int32", {"batch", "drafts+1", "mask_words"},
                    "bit t % 32 of word t / 32 allows token t in that row")},
    {},
    workspace,
    run,
    {"vocab: 1 to 1048576", "batch * (drafts + 1): at most 65535", "mask_words: vocab / 32, rounded up"}};
REGISTER_OPERATOR(kSpeculative)

}  // namespace slipway
