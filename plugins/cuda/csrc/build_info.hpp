// What the build says of itself. The library's build links its own definitions over these weak ones.
#pragma once

namespace slipway {

extern const char* const kBuildHash;      // of sources, flags and compilers; "" where nothing was said
extern const char* const kArchitectures;  // "sm_80,sm_90a,compute_100": SASS and PTX inside; "" when emulated

}  // namespace slipway
