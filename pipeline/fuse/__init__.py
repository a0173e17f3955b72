"""Rewriting an exported graph into fewer nodes that compute the same numbers, one rule a file.

The result has only standard operators and those of domain `slipway`; targets lower it further.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from model_repo.runtime.errors import BadInput

from .activation import Activation
from .arrangements import Arrangements
from .bias_gelu import BiasGelu
from .casts import Casts
from .constant_folding import ConstantFolding
from .conv_affine import ConvAffine
from .dense_attention import DenseAttention
from .duplicate_weights import DuplicateWeights
from .embed_layer_norm import EmbedLayerNorm
from .gate_up import GateUp
from .gated_halves import GeGlu, SwiGlu
from .head_norm import HeadNorm
from .index_cast import IndexCast
from .layer_norm import LayerNorm
from .linear import Linear
from .neutral_elements import NeutralElements
from .packed_texts import PackedTexts
from .qkv import Qkv
from .rms_norm import RmsNorm
from .rotary import Rotary
from .rotary_embedding import RotaryEmbedding
from .rule import FusionReport, Matches, NearMiss, Rule, RuleReport
from .shared_subgraphs import SharedSubgraphs
from .skip_layer_norm import SkipLayerNorm
from .skip_rms_norm import SkipRmsNorm
from .split_parts import SplitParts
from .unit_axis import UnitAxis
from .weight_arithmetic import WeightArithmetic

if TYPE_CHECKING:
    import onnx_ir as ir

    from pipeline.recipe import FuseRecipe

__all__ = ["FusionReport", "Matches", "NearMiss", "Rule", "RuleReport", "fuse", "rule_names", "rules"]


def rules(max_length: int | None) -> tuple[Rule, ...]:
    """All rules in the order in which they run. `max_length`: tokens that rotary tables cover."""
    return (
        ConstantFolding(),
        NeutralElements(),
        SharedSubgraphs(),
        DuplicateWeights(),
        WeightArithmetic(),
        Casts(),
        RmsNorm(),
        LayerNorm(),
        Activation(),
        HeadNorm(),
        Rotary(max_length),
        SplitParts(),
        RotaryEmbedding(),
        DenseAttention(),
        UnitAxis(),  # before what looks at products: they read matrices afterwards
        Arrangements(),
        IndexCast(),
        Linear(),
        ConvAffine(),
        Qkv(),
        GateUp(),
        SwiGlu(),
        GeGlu(),
        BiasGelu(),
        SkipRmsNorm(),
        SkipLayerNorm(),
        PackedTexts(),  # after what it must know: few operators are left
        EmbedLayerNorm(),
    )


def rule_names() -> tuple[str, ...]:
    """Names that `FuseRecipe.disable` may hold."""
    return tuple(rule.name for rule in rules(None))


def fuse(model: ir.Model, recipe: FuseRecipe, *, max_length: int | None) -> FusionReport:
    """Rewrites `model` in place by all rules that the recipe does not disable.

    `max_length`: the longest sequence in tokens (None for encoders, which need none). Weights that change
    are made when the model is saved. Raises BadInput when the recipe disables a rule that does not exist.
    """
    unknown = sorted(set(recipe.disable) - set(rule_names()))
    if unknown:
        raise BadInput(
            f"fuse.disable names {unknown[0]!r}, no fusion rule; there are: {', '.join(rule_names())}"
        )
    before = len(model.graph)
    reports: Sequence[RuleReport] = [
        rule.apply(model) for rule in rules(max_length) if rule.name not in recipe.disable
    ]
    operators = Counter(
        f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in model.graph
    )
    return FusionReport(tuple(reports), before, len(model.graph), dict(sorted(operators.items())))
