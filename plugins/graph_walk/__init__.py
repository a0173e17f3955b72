"""An engine that walks a graph lowered for TensorRT: each node by an operator of torch, the plugins by our kernels."""
