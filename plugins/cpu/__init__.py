"""The operators as ONNX Runtime custom operators for CPUs: C++ sources and the build that compiles them."""
