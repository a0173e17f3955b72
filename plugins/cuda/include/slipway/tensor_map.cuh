// Tensor maps: what the copy engine of sm_90 needs to know of a tensor, made on the host for each launch.
#pragma once
#include <cstdint>

#include "slipway/ptx_sm90.cuh"

#ifdef __CUDACC__
#include <cuda_runtime.h>
#endif

namespace slipway {

// A tensor of three axes, innermost first, and the box of it that one copy takes. Axis 0 has stride 1, the
// others multiples of 16 bytes. The box's rows lie in shared memory one after another, 128 or 64 bytes each,
// swizzled over as much.
struct TensorBoxes {
  const void* base;  // a multiple of 16
  uint64_t sizes[3];
  uint64_t strides[2];  // of axes 1 and 2, in bytes
  uint32_t box[3];      // box[0] elements are 128 or 64 bytes; the others at most 256
};

#ifdef __CUDACC__
// cuTensorMapEncodeTiled, asked of the driver, so that nothing links libcuda. nullptr: the driver has none.
inline decltype(&cuTensorMapEncodeTiled) tensor_map_encoder() {
  static const auto found = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
    const cudaError_t code =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &result);
    const bool is_there = code == cudaSuccess && result == cudaDriverEntryPointSuccess;
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(is_there ? entry : nullptr);
  }();
  return found;
}
#endif

// Makes the map of a tensor of 16-bit or 8-bit elements. False: the copy engine cannot copy such a tensor
// (strides, sizes), or the driver is too old.
template <class T>
bool make_tensor_map(ptx::TensorMap& map, const TensorBoxes& t) {
  for (int d = 0; d < 3; d++)
    if (t.sizes[d] < 1 || t.sizes[d] > (uint64_t(1) << 32) || t.box[d] < 1 || t.box[d] > 256) return false;
  for (uint64_t stride : t.strides)
    if (stride % 16 != 0 || stride == 0 || stride >= (uint64_t(1) << 40)) return false;
  const size_t row_bytes = t.box[0] * sizeof(T);
  if ((row_bytes != 128 && row_bytes != 64) || reinterpret_cast<uintptr_t>(t.base) % 16 != 0) return false;
#ifdef __CUDACC__
  const auto encode = tensor_map_encoder();
  const cuuint32_t every[3] = {1, 1, 1};
  const CUtensorMapDataType type =
      sizeof(T) == 1 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_UINT16;
  const cuuint64_t sizes[3] = {t.sizes[0], t.sizes[1], t.sizes[2]}, strides[2] = {t.strides[0], t.strides[1]};
  return encode != nullptr &&
         encode(&map, type, 3, const_cast<void*>(t.base), sizes, strides, t.box, every,
                CU_TENSOR_MAP_INTERLEAVE_NONE,
                row_bytes == 128 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
#else
  map = {static_cast<unsigned char*>(const_cast<void*>(t.base)),
         3,
         int(sizeof(T)),
         {t.sizes[0], t.sizes[1], t.sizes[2]},
         {0, t.strides[0], t.strides[1]},
         {t.box[0], t.box[1], t.box[2]},
         int(row_bytes)};
  return true;
#endif
}

}  // namespace slipway
