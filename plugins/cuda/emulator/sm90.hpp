// What only sm_90 has: mbarrier, bulk copies by tensor map, wgmma, named barriers, setmaxnreg.
//
// Stated by the PTX ISA's words, never compared with a chip. What the emulator does not see:
//   * a fence.proxy.async that only one of several writing threads executes, after all have written;
//   * a product that the hardware reads from memory before its first wait (here it reads then), and one whose warps
//     end at different times (here it ends as a whole);
//   * arithmetic: sums are float32, k by k; the hardware keeps fewer bits of an e4m3 product's sum;
//   * clusters, multicast, im2col, L2 policies; generic reads that a bulk copy overtakes without an mbarrier between.
#pragma once
#include "emulator.hpp"
#include "sm90_barriers.hpp"
#include "sm90_copy.hpp"
#include "sm90_memory.hpp"
#include "sm90_wgmma.hpp"
