// Compiled only where ONNX Runtime's own header is found: every place in ort_entries.h against it.
#include <onnxruntime_c_api.h>

#include "ort_entries.h"

#define SLIPWAY_CHECK_PLACE(place, result, name, parameters)       \
  static_assert(offsetof(OrtApi, name) == (place) * sizeof(void*), \
                "OrtApi::" #name " is at another place than ort_entries.h says");
SLIPWAY_ORT_ENTRIES(SLIPWAY_CHECK_PLACE)

#define SLIPWAY_CHECK_FIELD(name)                                                      \
  static_assert(offsetof(OrtCustomOp, name) == offsetof(slipway::ort::CustomOp, name), \
                "OrtCustomOp::" #name " is at another place than ort_entries.h says");
SLIPWAY_CHECK_FIELD(version)
SLIPWAY_CHECK_FIELD(CreateKernel)
SLIPWAY_CHECK_FIELD(GetName)
SLIPWAY_CHECK_FIELD(GetExecutionProviderType)
SLIPWAY_CHECK_FIELD(GetInputType)
SLIPWAY_CHECK_FIELD(GetInputTypeCount)
SLIPWAY_CHECK_FIELD(GetOutputType)
SLIPWAY_CHECK_FIELD(GetOutputTypeCount)
SLIPWAY_CHECK_FIELD(KernelCompute)
SLIPWAY_CHECK_FIELD(KernelDestroy)
SLIPWAY_CHECK_FIELD(GetInputCharacteristic)
SLIPWAY_CHECK_FIELD(GetOutputCharacteristic)
SLIPWAY_CHECK_FIELD(GetInputMemoryType)
SLIPWAY_CHECK_FIELD(GetVariadicInputMinArity)
SLIPWAY_CHECK_FIELD(GetVariadicOutputHomogeneity)
SLIPWAY_CHECK_FIELD(CreateKernelV2)
SLIPWAY_CHECK_FIELD(KernelComputeV2)
SLIPWAY_CHECK_FIELD(GetStartVersion)
SLIPWAY_CHECK_FIELD(GetEndVersion)

static_assert(int(slipway::ort::kInvalidArgument) == int(ORT_INVALID_ARGUMENT));
static_assert(int(slipway::ort::kFail) == int(ORT_FAIL));
static_assert(int(slipway::ort::kFloat) == int(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT));
static_assert(int(slipway::ort::kInt32) == int(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32));
static_assert(int(slipway::ort::kBool) == int(ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL));
static_assert(int(slipway::ort::kFloat16) == int(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16));
static_assert(int(slipway::ort::kBFloat16) == int(ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16));
