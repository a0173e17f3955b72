"""A `.onnx` file: a graph that somebody else exported, kept as it is but for its opset, then fused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from model_repo.runtime.errors import BadInput

from .base import Source
from .names import model_name

if TYPE_CHECKING:
    from pipeline.export.graph import GraphModel
    from pipeline.recipe import SourceRecipe


@dataclass(frozen=True)
class OnnxSource(Source):
    """`path`: the graph; `example`: an .npz with an array for each input, None to make them up."""

    path: Path = Path()
    example: Path | None = None

    def load(self) -> GraphModel:
        """Raises BadInput when the example does not fit, or when ONNX Runtime does not run the graph."""
        from pipeline.export.graph import GraphModel

        from .graph_checks import checked_graph

        example = None if self.example is None else _arrays(self.example)
        return GraphModel(checked_graph(self.path), self.path, example)


def open_graph(path: Path, recipe: SourceRecipe) -> OnnxSource:
    """Checks the graph, its operators and where its weights lie. Raises BadInput."""
    from .graph_checks import checked_graph, external_files

    example = Path(recipe.example).expanduser() if recipe.example else None
    if example is not None and not example.is_file():
        raise BadInput(f"no file at {recipe.example}; --example names a .npz with an array for each input")
    return OnnxSource(
        name=model_name(str(path)),
        kind="tensors",
        folder=path.parent,
        files=(path, *external_files(checked_graph(path), path), *((example,) if example else ())),
        path=path,
        example=example,
    )


def _arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of an .npz, by name. Raises BadInput."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, AttributeError) as error:
        raise BadInput(
            f"{path} is not a readable .npz ({error}); write it with numpy.savez(path, name=array, ...)"
        ) from error
