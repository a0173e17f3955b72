"""What runs inside tritonserver: one module a Triton model, over the runtime beside it.

An emitted repository carries a copy of this package and of `runtime` in every version folder, as
`slipway_runtime.backends` and `slipway_runtime.runtime`; so everything here imports relatively.
"""
