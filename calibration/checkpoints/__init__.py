"""Checkpoints in Hugging Face format whose weights are quantized already: their codes and scales, unchanged.

One file a format; `reading.open_quantized` finds which it is. Weights are given as `Quantized` [out, in] by the name of
the float parameter that they stand for (`model.layers.0.mlp.up_proj.weight`), read when they are asked for.
"""
