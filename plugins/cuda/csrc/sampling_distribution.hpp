// The passes over logits that sampling and speculative acceptance share.
#pragma once
#include "operator.hpp"
#include "slipway/sampling_survey.cuh"

namespace slipway {
namespace sampling {

// How rows are dealt out on the current device. Throws Invalid when there are too many rows or tokens.
Division divide(int64_t rows, int64_t vocab);

// The shared part of the workspace. `adjusted`: logits of some rows may be adjusted.
Workspace take_workspace(WorkspaceParts& parts, const Division& d, int64_t rows, int64_t vocab, bool adjusted);

// Throws Invalid when allowed_tokens has another number of words a row than the vocabulary takes.
void check_allowed_tokens(const Arguments& a);

// Logits, the parameters and the mask that both operators have. Rows of logits lie close, until the caller says else.
Rows rows_of(const Arguments& a, int64_t rows);

// Leaves each row's plan in the workspace: survey, collect, gather. Three launches (two with p.log_probs).
void launch_distribution(const Rows& p, const Division& d, const Workspace& w, DType logits_type, void* stream);

}  // namespace sampling
}  // namespace slipway
