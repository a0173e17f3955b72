"""The engine loop and everything it needs, portable: standard library, numpy, onnxruntime, tokenizers,
Pillow where there are images.

An emitted model repository carries a copy of this package as `slipway_runtime`, so it imports nothing of
the other folders and only imports itself relatively.
"""
