// The one name of CUDA that TensorRT's plugin interfaces mention. Written for the tests.
#pragma once
typedef struct CUstream_st* cudaStream_t;
