"""Parity: each stage's artifact against the one before it, on real inputs, within the recipe's tolerance.

`decoder.py`, `encoder.py` and `tensors.py` run a graph on the inputs, `reference.py` the torch module, `compare.py`
gives the figures and the verdict. Where two of them part is found by `walk.py`: `feeds.py` gives the inputs,
`stepwise.py` computes a graph piece by piece, `pairs.py` and `modules.py` know which tensors are the
same, `distance.py` how far they are from each other; `report.py` and `picture.py` show it.
"""
