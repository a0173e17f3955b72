// Which instruction set's kernels run, and the scratch memory of a thread.
#include <atomic>
#include <cstdlib>

#include "kernels.h"

namespace slipway::cpu {
namespace {

// Kernels of `set` (1 plain, 2 AVX2, 3 AVX-512, 4 with VNNI), or null where this processor cannot run them.
const Kernels* kernels_of(int set) {
  switch (set) {
    case 1: return plain_kernels();
#if defined(__x86_64__)
    case 2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")
                 ? avx2_kernels()
                 : nullptr;
    case 4: return __builtin_cpu_supports("avx512vnni") && kernels_of(3) ? avx512_vnni_kernels() : nullptr;
    case 3:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                     __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")
                 ? avx512_kernels()
                 : nullptr;
#endif
    default: return nullptr;
  }
}

const Kernels* best_kernels() {
  for (int set = 4; set > 1; --set) {
    if (const Kernels* kernels = kernels_of(set)) return kernels;
  }
  return plain_kernels();
}

std::atomic<const Kernels*> active{nullptr};

// Memory of one thread, freed with it. Grows, and never shrinks: sizes repeat from call to call.
struct Scratch {
  float* data = nullptr;
  int64_t floats = 0;
  ~Scratch() { std::free(data); }
};

}  // namespace

const Kernels& active_kernels() {
  const Kernels* kernels = active.load(std::memory_order_acquire);
  if (!kernels) {
    kernels = best_kernels();
    active.store(kernels, std::memory_order_release);
  }
  return *kernels;
}

// At least `floats` elements on a cache line's boundary, contents undefined; null when there is no memory.
float* thread_scratch(int64_t floats) {
  thread_local Scratch scratch;
  if (scratch.floats < floats) {
    std::free(scratch.data);
    const size_t bytes = (size_t(floats) * sizeof(float) + 63) / 64 * 64;
    scratch.data = static_cast<float*>(std::aligned_alloc(64, bytes));
    scratch.floats = scratch.data ? floats : 0;
  }
  return scratch.data;
}

}  // namespace slipway::cpu

extern "C" int slipway_cpu_force_isa(int set) {
  using namespace slipway::cpu;
  const Kernels* kernels = set == 0 ? best_kernels() : kernels_of(set);
  if (!kernels) return 0;
  active.store(kernels, std::memory_order_release);
  return 1;
}

extern "C" const char* slipway_cpu_isa() { return slipway::cpu::active_kernels().name; }
