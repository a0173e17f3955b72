"""The encoder's graph of an encoder-decoder, which takes the same stages as its decoder's, beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from model_repo.runtime.contract import EncoderSpec
from model_repo.runtime.errors import BadInput
from pipeline.parity.cross import encoder_beside

from .context import BuildContext

if TYPE_CHECKING:
    import onnx_ir as ir


class EncoderFiles(NamedTuple):
    """What a stage made of the encoder's graph: final name -> staged file, and the weights in place."""

    files: dict[str, Path]
    weights: tuple[Path, ...]


def rewritten(
    context: BuildContext, before: str, after: str, rewrite: Callable[[ir.Model], object]
) -> EncoderFiles:
    """The encoder's graph beside `before`, rewritten and staged beside `after`; nothing where there is no encoder."""
    from pipeline.graph import load_graph, save_graph

    if context.facts.encoder is None:
        return EncoderFiles({}, ())
    model = load_graph(encoder_beside(context.workspace.path(before)))
    rewrite(model)
    saved = save_graph(model, encoder_beside(context.workspace.staged(after)))
    return EncoderFiles({encoder_beside(Path(after)).name: saved.graph}, saved.weights)


def refuse_quantization(context: BuildContext, encoder: EncoderSpec | None) -> None:
    """Raises BadInput: a recipe that quantizes a decoder with an encoder."""
    quantize = context.recipe.quantize
    if encoder is not None and (quantize.precision != "fp32" or quantize.kv_dtype != "float32"):
        raise BadInput(
            f"precision {quantize.precision} with pools of {quantize.kv_dtype} is asked for, and the model is an "
            "encoder-decoder: only fp32 with float32 is supported"
        )
