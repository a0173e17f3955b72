"""TensorRT and TensorRT-RTX: from ONNX to an engine, and what the builder made of it. Both share their builder."""
