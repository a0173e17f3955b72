"""What each precision of the recipe means: the schemes of weights and of what they are multiplied with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from calibration.schemes import Scheme
from pipeline.recipe import FLOATS

if TYPE_CHECKING:
    from pipeline.recipe import QuantizeRecipe

DYNAMIC_INT8 = Scheme("int8", "token")


@dataclass(frozen=True)
class LayerSchemes:
    """`weight`: of a layer's matrix [out, in]; None leaves the layer in floating point. `activation`: of its inputs;
    None leaves them as they are (weight-only)."""

    weight: Scheme | None
    activation: Scheme | None = None


def layer_schemes(precision: str, block: int) -> LayerSchemes:
    """The schemes of one quantized layer, or of none for a float precision; `block`: inputs that share a scale.

    Raises KeyError for a precision that is no layer's, such as mixed.
    """
    blocks = Scheme("int4", "block", block)
    known: Mapping[str, LayerSchemes] = {
        **dict.fromkeys(FLOATS, LayerSchemes(None)),
        "int8": LayerSchemes(Scheme("int8", "channel"), DYNAMIC_INT8),
        "int8-weights": LayerSchemes(Scheme("int8", "block", block)),
        "int4": LayerSchemes(blocks),
        "int4-asymmetric": LayerSchemes(Scheme("int4", "block", block, symmetric=False)),
        "w4a8": LayerSchemes(blocks, DYNAMIC_INT8),
        "fp8": LayerSchemes(Scheme("e4m3", "channel"), Scheme("e4m3")),
    }
    return known[precision]


LAYER_PRECISIONS = ("fp32", "int8", "int8-weights", "int4", "int4-asymmetric", "w4a8", "fp8")
"""What one layer can be, and so what a file for precision mixed may say."""


def schemes_of(
    recipe: QuantizeRecipe, weights: list[str], chosen: Mapping[str, str] | None = None
) -> dict[str, LayerSchemes]:
    """The schemes of each weight, by its name. `chosen`: precision by weight name, for precision mixed."""
    if chosen is None:
        return {name: layer_schemes(recipe.precision, recipe.block) for name in weights}
    return {name: layer_schemes(chosen.get(name, "fp32"), recipe.block) for name in weights}
