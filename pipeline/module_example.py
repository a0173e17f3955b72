"""What a user's function gives for `package.module:function`: a torch module and how to call it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class ModuleExample:
    """A torch module, example inputs, and which of their sizes are dynamic.

        def classifier():
            return ModuleExample(
                module=Net(),
                inputs={"image": torch.rand(2, 3, 224, 224)},
                dynamic={"image": {0: "batch"}},
                output_names=("logits",),
                limits={"batch": (1, 64)},
            )

    `inputs`: tensors for `module.forward`, a tuple by place or a mapping by name. `dynamic`: input name -> axis ->
    the size's name; axes of one name have one size, all other sizes are fixed. `output_names`: names of the
    outputs in order; by default the keys of a mapping (a ModelOutput), or output, output_0, output_1 and so on.
    `limits`: name of a size -> least and most that the module takes (default: 1 and no bound). A plain pair
    `(module, inputs)` stands for an example without dynamic sizes.
    """

    module: nn.Module
    inputs: tuple[Tensor, ...] | Mapping[str, Tensor]
    dynamic: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    output_names: tuple[str, ...] = ()
    limits: Mapping[str, tuple[int, int]] = field(default_factory=dict)
