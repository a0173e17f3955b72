// Runs CUDA C++ kernels on the CPU, one fiber per CUDA thread: what slipway/ptx.cuh includes when the compiler is not
// nvcc. The aim is to find wrong kernels, not to be fast:
//   * threads of a block run in an order drawn from a seed, and a warp may run far ahead of the others;
//   * shared memory is guarded at its ends (ASan) and filled with NaN for each block;
//   * cp.async delivers at the wait and not before; until then its destination holds NaN;
//   * warp operations wait for every lane of their mask; diverging or missing lanes are reported;
//   * a block in which no thread can run is reported with the place each thread waits at;
//   * under -fsanitize=thread only the synchronisation that CUDA promises orders two threads, so a missing barrier is
//     reported whatever the schedule;
//   * launches that CUDA refuses are refused.
// Blocks run one after another: a kernel whose blocks wait for one another never ends.
#pragma once
#include "atomics.hpp"
#include "barrier.hpp"
#include "context.hpp"
#include "half.hpp"
#include "language.hpp"
#include "machine.hpp"
#include "schedule.hpp"
#include "shared_memory.hpp"
#include "tensor_core.hpp"
#include "warp.hpp"
