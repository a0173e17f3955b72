#include "device.hpp"

#include "slipway/errors.hpp"

#ifdef __CUDACC__
#include <cuda_runtime.h>

#include <array>
#include <mutex>
#include <string>

namespace slipway {
namespace {

void check(cudaError_t code, const char* what) {
  if (code != cudaSuccess) throw CudaError(std::string(what) + ": " + cudaGetErrorString(code));
}

int attribute(cudaDeviceAttr which, int index) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, index), "cudaDeviceGetAttribute");
  return value;
}

}  // namespace

const Device& device() {
  constexpr int kMaxDevices = 64;
  static std::array<Device, kMaxDevices> known;
  static std::array<std::once_flag, kMaxDevices> asked;
  int index = 0;
  check(cudaGetDevice(&index), "no CUDA device");
  if (index >= kMaxDevices) throw CudaError("device " + std::to_string(index) + " is beyond the first 64");
  std::call_once(asked[index], [index] {
    known[index] = {attribute(cudaDevAttrComputeCapabilityMajor, index) * 10 +
                        attribute(cudaDevAttrComputeCapabilityMinor, index),
                    attribute(cudaDevAttrMultiProcessorCount, index),
                    attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, index),
                    attribute(cudaDevAttrL2CacheSize, index)};
  });
  return known[index];
}

}  // namespace slipway

#else
#include <cstdlib>

namespace slipway {

// The emulated device: few SMs, so that a persistent grid deals several pieces of work to each block, and an L2 cache
// that small tensors overflow.
const Device& device() {
  static const Device emulated = [] {
    const char* capability = std::getenv("SLIPWAY_EMULATED_COMPUTE_CAPABILITY");
    return Device{capability ? std::atoi(capability) : 80, 3, 227 << 10, 64 << 10};
  }();
  return emulated;
}

}  // namespace slipway
#endif
