// The part of ONNX Runtime's C interface that the operators use.
//
// ONNX Runtime's headers are in no Python package, so the entries needed are declared here by their place
// in the function table `OrtApi`. The table is append-only by promise: an entry's place never changes.
// Where the official header is found, the build defines SLIPWAY_ORT_HEADER and `ort_check.cpp` verifies every
// place below. The lowest interface version that has all of them is 24 (ONNX Runtime 1.24).
#pragma once

#include <cstddef>
#include <cstdint>

namespace slipway::ort {

struct Status;
struct Value;
struct KernelInfo;
struct KernelContext;
struct Domain;  // OrtCustomOpDomain
struct SessionOptions;
struct ShapeInferContext;

constexpr uint32_t kApiVersion = 24;

enum ErrorCode : int { kFail = 1, kInvalidArgument = 2 };

enum ElementType : int {
  kUndefined = 0,
  kFloat = 1,
  kUInt8 = 2,
  kInt8 = 3,
  kInt32 = 6,
  kInt64 = 7,
  kBool = 9,
  kFloat16 = 10,
  kBFloat16 = 16,
  kFloat8E4m3 = 17,
};

enum Characteristic : int { kRequired = 0, kOptional = 1 };

// Places in OrtApi. One macro line an entry: place, name, parameters. All return Status* (null is success)
// except where the return type is given.
#define SLIPWAY_ORT_ENTRIES(ENTRY)                                                                           \
  ENTRY(0, Status*, CreateStatus, (ErrorCode code, const char* message))                                     \
  ENTRY(26, Status*, CreateCustomOpDomain, (const char* domain, Domain** out))                               \
  ENTRY(27, Status*, CustomOpDomain_Add, (Domain * domain, const struct CustomOp* op))                       \
  ENTRY(28, Status*, AddCustomOpDomain, (SessionOptions * options, Domain * domain))                         \
  ENTRY(51, Status*, GetTensorMutableData, (Value * value, void** out))                                      \
  ENTRY(85, Status*, KernelInfoGetAttribute_float, (const KernelInfo* info, const char* name, float* out))   \
  ENTRY(86, Status*, KernelInfoGetAttribute_int64, (const KernelInfo* info, const char* name, int64_t* out)) \
  ENTRY(88, Status*, KernelContext_GetInputCount, (const KernelContext* context, size_t* out))               \
  ENTRY(89, Status*, KernelContext_GetOutputCount, (const KernelContext* context, size_t* out))              \
  ENTRY(90, Status*, KernelContext_GetInput,                                                                 \
        (const KernelContext* context, size_t index, const Value** out))                                     \
  ENTRY(91, Status*, KernelContext_GetOutput,                                                                \
        (KernelContext * context, size_t index, const int64_t* dimensions, size_t count, Value** out))       \
  ENTRY(93, void, ReleaseStatus, (Status * status))                                                          \
  ENTRY(274, Status*, KernelContext_ParallelFor,                                                             \
        (const KernelContext* context, void (*function)(void*, size_t), size_t total, size_t batches,        \
         void* user_data))                                                                                   \
  ENTRY(414, Status*, GetTensorElementTypeAndShapeDataReference,                                             \
        (const Value* value, ElementType* type, const int64_t** shape, size_t* rank))

// The function table as it comes from ONNX Runtime: only its entries are looked at, by place.
struct Api {
  void* entries[415];

#define SLIPWAY_ORT_METHOD(place, result, name, parameters) \
  using name##Function = result(*) parameters;              \
  name##Function name() const { return reinterpret_cast<name##Function>(entries[place]); }
  SLIPWAY_ORT_ENTRIES(SLIPWAY_ORT_METHOD)
#undef SLIPWAY_ORT_METHOD
};

// What ONNX Runtime passes to RegisterCustomOps.
struct ApiBase {
  const Api* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

// OrtCustomOp. ONNX Runtime looks at no field that `version` does not promise.
struct CustomOp {
  uint32_t version;
  void* (*CreateKernel)(const CustomOp* op, const Api* api, const KernelInfo* info);
  const char* (*GetName)(const CustomOp* op);
  const char* (*GetExecutionProviderType)(const CustomOp* op);
  ElementType (*GetInputType)(const CustomOp* op, size_t index);
  size_t (*GetInputTypeCount)(const CustomOp* op);
  ElementType (*GetOutputType)(const CustomOp* op, size_t index);
  size_t (*GetOutputTypeCount)(const CustomOp* op);
  void (*KernelCompute)(void* kernel, KernelContext* context);
  void (*KernelDestroy)(void* kernel);
  Characteristic (*GetInputCharacteristic)(const CustomOp* op, size_t index);
  Characteristic (*GetOutputCharacteristic)(const CustomOp* op, size_t index);
  int (*GetInputMemoryType)(const CustomOp* op, size_t index);
  int (*GetVariadicInputMinArity)(const CustomOp* op);
  int (*GetVariadicInputHomogeneity)(const CustomOp* op);
  int (*GetVariadicOutputMinArity)(const CustomOp* op);
  int (*GetVariadicOutputHomogeneity)(const CustomOp* op);
  Status* (*CreateKernelV2)(const CustomOp* op, const Api* api, const KernelInfo* info, void** kernel);
  Status* (*KernelComputeV2)(void* kernel, KernelContext* context);
  Status* (*InferOutputShape)(const CustomOp* op, ShapeInferContext* context);
  int (*GetStartVersion)(const CustomOp* op);
  int (*GetEndVersion)(const CustomOp* op);
  // Four callbacks for outputs that reuse inputs' memory: not given, they are null.
  void* inplace_callbacks[4];
};

}  // namespace slipway::ort
