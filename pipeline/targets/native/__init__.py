"""Lowering to what TensorRT and TensorRT-RTX know by themselves: standard operators, and caches without blocks."""
