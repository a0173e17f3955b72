// All that kernels use of PTX. These headers (ptx_*.cuh) are the only places with inline assembly; any compiler but
// nvcc gets the emulator instead, so that a kernel which uses only these wrappers runs on the CPU too.
#pragma once
#include "slipway/ptx_launch.cuh"
#include "slipway/ptx_math.cuh"
#include "slipway/ptx_matrix.cuh"
#include "slipway/ptx_memory.cuh"
