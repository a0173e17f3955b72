"""A `.pt2` file: a program that `torch.export.save` wrote, with the inputs that it was traced with."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_repo.runtime.errors import BadInput

from .base import Source
from .names import model_name

if TYPE_CHECKING:
    from pipeline.export.program import ProgramModel
    from pipeline.recipe import SourceRecipe


@dataclass(frozen=True)
class ProgramSource(Source):
    """`path`: the file; `seconds` that each run of the program may take."""

    path: Path = Path()
    seconds: float = 0.0

    def load(self) -> ProgramModel:
        """Raises BadInput when torch cannot read the program, or when it holds no example inputs."""
        import torch

        from pipeline.export.program import ProgramModel

        try:
            program: Any = torch.export.load(self.path)
        except Exception as error:  # torch's readers raise whatever their parts raise
            text = " ".join(str(error).split())
            raise BadInput(
                f"torch cannot load {self.path}: {text:.300}; save it again with torch.export.save, by the torch that "
                f"runs here ({torch.__version__})"
            ) from error
        return ProgramModel(program, str(self.path), self.seconds)


def open_program(path: Path, recipe: SourceRecipe) -> ProgramSource:
    """Checks that the file is a whole archive. Raises BadInput."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise BadInput(
            f"{path} is truncated or no .pt2 archive ({error}); save it again with torch.export.save"
        ) from error
    if damaged is not None:
        raise BadInput(f"{path} is damaged: {damaged} in it does not fit its checksum; get the file again")
    return ProgramSource(
        name=model_name(str(path)),
        kind="tensors",
        folder=path.parent,
        files=(path,),
        path=path,
        seconds=recipe.load_seconds,
    )
