// The launcher of attention_plan, for operators that write the work list as one of their phases.
#pragma once
#include <cstdint>

#include "device.hpp"
#include "slipway/attention_plan.cuh"

namespace slipway {

// Blocks that paged attention runs as, on the current device: two fit a multiprocessor.
inline int attention_workers() { return 2 * device().sm_count; }

// Ints that the attention_metadata of a step needs.
inline int64_t attention_metadata_ints(const AttentionLimits& limits) { return AttentionPlanLayout(limits).ints; }

// Checks the limits and enqueues the plan on `stream`. Throws Invalid for limits that make no sense.
void launch_attention_plan(const AttentionPlanParams& params, void* stream);

}  // namespace slipway
