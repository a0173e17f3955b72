"""The graph of an encoder, which takes the same stages as its decoder's, beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from model_repo.runtime.contract import EncoderSpec, ImageEncoderSpec
from model_repo.runtime.errors import BadInput
from pipeline.parity.cross import encoder_beside
from pipeline.sources.base import Placeholder

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

    if not context.facts.has_two_graphs:
        return EncoderFiles({}, ())
    model = load_graph(encoder_beside(context.workspace.path(before)))
    rewrite(model)
    saved = save_graph(model, encoder_beside(context.workspace.staged(after)))
    return EncoderFiles({encoder_beside(Path(after)).name: saved.graph}, saved.weights)


def refuse_quantization(
    context: BuildContext, encoder: EncoderSpec | ImageEncoderSpec | Placeholder | None
) -> None:
    """Raises BadInput: a recipe that quantizes a decoder with an encoder, of whichever kind."""
    quantize = context.recipe.quantize
    kind = "an encoder-decoder" if isinstance(encoder, EncoderSpec) else "a vision-language model"
    if encoder is not None and (quantize.precision != "fp32" or quantize.kv_dtype != "float32"):
        raise BadInput(
            f"precision {quantize.precision} with pools of {quantize.kv_dtype} is asked for, and the model is {kind}: "
            "only fp32 with float32 is supported"
        )
