// What launchers throw; the C interface turns each into its code and message.
#pragma once
#include <stdexcept>

namespace slipway {

struct Invalid : std::runtime_error {  // an argument: what was given, what is allowed
  using std::runtime_error::runtime_error;
};
struct Unsupported : std::runtime_error {  // right arguments, but not on this device
  using std::runtime_error::runtime_error;
};
struct CudaError : std::runtime_error {  // the CUDA runtime's words
  using std::runtime_error::runtime_error;
};

}  // namespace slipway
