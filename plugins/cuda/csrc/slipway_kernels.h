/* The C interface of libslipway_kernels.so. Every operator is called in one way: tensors and attributes in the
 * order of its description (slipway_describe). Nothing here ends the process or throws; nothing waits for the
 * device, and slipway_run allocates nothing, so that it can be captured in a CUDA graph. */
#pragma once
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SLIPWAY_API __attribute__((visibility("default")))
#define SLIPWAY_MAX_RANK 6

/* Codes that the functions return. */
enum {
  SLIPWAY_OK = 0,
  SLIPWAY_INVALID = 1,     /* an argument; the message says what was given and what is allowed */
  SLIPWAY_UNSUPPORTED = 2, /* right arguments, but not on this device */
  SLIPWAY_CUDA = 3,        /* the CUDA runtime or driver failed; the message holds its words */
  SLIPWAY_INTERNAL = 4     /* a fault of the library */
};

typedef struct {
  void* data;      /* device address; may be NULL only when the tensor has no elements */
  int32_t dtype;   /* onnx.TensorProto.DataType; 0: an optional tensor that is absent */
  int32_t rank;    /* 0 to SLIPWAY_MAX_RANK */
  int64_t shape[SLIPWAY_MAX_RANK];
  int64_t strides[SLIPWAY_MAX_RANK]; /* in elements */
} slipway_tensor;

typedef struct {
  char message[1024]; /* empty when the code is SLIPWAY_OK */
} slipway_error;

/* Version, operators and architectures as JSON. Needs no driver. */
SLIPWAY_API const char* slipway_kernels_info(void);

/* An operator's tensors, attributes, types and limits as JSON; NULL when there is no such operator. */
SLIPWAY_API const char* slipway_describe(const char* op);

/* Bytes of device memory (aligned to 256) that slipway_run needs for these shapes and attributes. The tensors'
 * addresses are not looked at and may be NULL. */
SLIPWAY_API int32_t slipway_workspace_bytes(const char* op, const slipway_tensor* tensors, int32_t n_tensors,
                                            const double* attributes, int32_t n_attributes, int64_t* bytes,
                                            slipway_error* error);

/* Enqueues the operator on `stream` (cudaStream_t). */
SLIPWAY_API int32_t slipway_run(const char* op, const slipway_tensor* tensors, int32_t n_tensors,
                                const double* attributes, int32_t n_attributes, void* workspace,
                                int64_t workspace_bytes, void* stream, slipway_error* error);

#ifdef __cplusplus
}
#endif
