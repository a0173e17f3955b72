// The launcher of attention_plan, for operators that write the work list as one of their phases.
#pragma once
#include <cstdint>

#include "device.hpp"
#include "slipway/attention_plan.cuh"

namespace slipway {

// Blocks that paged attention runs as: `wanted`, or if that is 0 two for each multiprocessor of the current device.
inline int attention_workers(int64_t wanted = 0) { return wanted > 0 ? int(wanted) : 2 * device().sm_count; }

// Ints that the attention_metadata of a step needs.
inline int64_t attention_metadata_ints(const AttentionLimits& limits) { return AttentionPlanLayout(limits).ints; }

// Checks the limits and enqueues the plan on `stream`. Throws Invalid for limits that make no sense.
void launch_attention_plan(const AttentionPlanParams& params, void* stream);

}  // namespace slipway
