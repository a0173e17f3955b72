// What kernels use of PTX and of CUDA's intrinsics, against their definitions, on the emulator.
#include "primitives_blocks.hpp"
#include "primitives_matrices.hpp"
#include "primitives_memory.hpp"
#include "primitives_warps.hpp"

int main(int argc, char** argv) {
  std::vector<Check> checks;
  for (const auto* part : {&kMatrices, &kWarps, &kBlocks, &kMemory, &kRaces})
    checks.insert(checks.end(), part->begin(), part->end());
  return run_checks(argc, argv, checks);
}
