"""Names of what is noted in graphs about where their parts come from: metadata of nodes, weights and values."""

from __future__ import annotations

ORIGIN = "slipway.origin"
"""Of a weight: JSON list of the slices that it is made of, in order (`pipeline.export.tidy.Origin`)."""

MODULE = "slipway.module"
"""Of a node: dotted name of the torch module that it came from."""

SOURCE = "slipway.source"
"""Of a node: the line of the model's source that it came from, such as
'transformers/models/llama/modeling_llama.py:64: variance = hidden_states.pow(2).mean(-1, keepdim=True)'."""

SAME_AS = "slipway.same_as"
"""Of a value: name of the tensor of the graph before fusion that has the same elements in the same order, so
that a comparison of the two graphs finds it."""

PACKED, TOKENS, ZEROS = "slipway.packed", "tokens", "zeros"
"""Of a value with SAME_AS whose texts are not padded as those of that tensor [batch, length, ...] are: TOKENS, it has
the tokens' rows alone [tokens, ...]; ZEROS, it has zeros at padding."""
