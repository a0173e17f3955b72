"""From a fused graph to a quantized one: which schemes a precision means (`precisions.py`), where a target wants them
(`policy.py`), the nodes that say so (`write.py`), and whether all of it came true (`verify.py`).

A quantized graph computes in standard operators what the target will compute with codes: weights are codes behind
DequantizeLinear, static activations pass QuantizeLinear and DequantizeLinear, activations with a scale a token pass
slipway::FakeQuantizeTokens. Lowering turns the patterns into a target's own products."""
