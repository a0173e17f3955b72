"""The CUDA kernels as plugins of TensorRT and TensorRT-RTX: Python classes to develop with, C++ (`csrc/`) to serve."""
