"""Parity: each stage's artifact against the one before it, on real inputs, within the recipe's tolerance.

`inputs.py` makes the inputs, `decoder.py` and `encoder.py` run a graph on them, `reference.py` the torch
module, `compare.py` gives the figures and the verdict.
"""
