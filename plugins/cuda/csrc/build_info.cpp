#include "build_info.hpp"

namespace slipway {

__attribute__((weak)) extern const char* const kBuildHash = "";
__attribute__((weak)) extern const char* const kArchitectures = "";

}  // namespace slipway
