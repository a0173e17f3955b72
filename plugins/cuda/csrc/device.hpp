// What launchers need to know of the device that is current.
#pragma once

namespace slipway {

struct Device {
  int compute_capability;  // 90 for 9.0
  int sm_count;
  int max_shared_bytes;  // dynamic shared memory that one block may ask for
  int l2_bytes;
};

// Of the current device; asked once and kept. Throws CudaError when there is none.
const Device& device();

}  // namespace slipway
