"""Algorithms that choose quantized weights, one a file; each folds into the plain graph.

A weight is [out, in]: a row makes one output. What is known of a layer's inputs is in `statistics.Statistics`, gathered
sample by sample. Two kinds of result: a `Quantized` (codes and scales), or a factor of each input channel that
moves between a layer and what comes before it and leaves the float model as it was.
"""
