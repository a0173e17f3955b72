"""CUDA kernels: headers, launchers behind a C ABI, the emulator they are tested on, and their build."""
