"""Rotary scalings that depend on the length of the step, frozen for the engine's longest sequence.

`dynamic` and `longrope` choose their frequencies by the longest position in the batch: a neighbour would
change a request's numbers, and keys already in the pool would stay turned by the old frequencies. They are
chosen once, for the engine's maximum length. All other kinds (linear, llama3, yarn) are plain data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


class FrozenRotary(NamedTuple):
    """A rotary module that was frozen: its name in the model, and the kind of scaling it had."""

    module: str
    kind: str


def freeze_rotary(model: nn.Module, max_length: int) -> list[FrozenRotary]:
    """Freezes every length-dependent rotary module for sequences of up to `max_length` tokens, in place."""
    frozen = []
    for name, module in model.named_modules():
        kinds = getattr(module, "rope_type", None)
        if isinstance(kinds, str) and _depends_on_length(kinds):
            _freeze(module, kinds, max_length, layer_type=None)
            module.rope_type = "default"
            frozen.append(FrozenRotary(name, kinds))
        elif isinstance(kinds, Mapping):  # one kind for each type of layer
            for layer_type, kind in kinds.items():
                if _depends_on_length(kind):
                    _freeze(module, kind, max_length, layer_type)
                    frozen.append(FrozenRotary(name, kind))
            module.rope_type = {
                layer_type: "default" if _depends_on_length(kind) else kind
                for layer_type, kind in kinds.items()
            }
    return frozen


def _depends_on_length(kind: str) -> bool:
    return "dynamic" in kind or kind == "longrope"


def _freeze(module: nn.Module, kind: str, max_length: int, layer_type: str | None) -> None:
    """Puts the frequencies for `max_length` where the module looks for them."""
    arguments = {} if layer_type is None else {"layer_type": layer_type}
    frequencies, attention_scaling = ROPE_INIT_FUNCTIONS[kind](
        module.config, "cpu", seq_len=max_length, **arguments
    )
    prefix = "" if layer_type is None else f"{layer_type}_"
    device = getattr(module, f"{prefix}inv_freq").device
    module.register_buffer(f"{prefix}inv_freq", frequencies.to(device), persistent=False)
    setattr(module, f"{prefix}attention_scaling", attention_scaling)
