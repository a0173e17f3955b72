"""`package.module:function`: a function of the user's that returns a torch module and example inputs.

Opening finds the module's file without running any code; the function itself is called by `load`, which the
build does in a child process.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import TYPE_CHECKING

from model_repo.runtime.errors import BadInput

from .base import Source
from .user_code import guarded, import_from_here, nearest_name

if TYPE_CHECKING:
    from pipeline.export.module import TorchModel
    from pipeline.recipe import SourceRecipe

REFERENCE = re.compile(r"((?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*):([A-Za-z_]\w*)")
"""What such a MODEL looks like: module and function."""


@dataclass(frozen=True)
class ModuleSource(Source):
    """`module` and `function` as they were given; `seconds` that the user's code may take at each call."""

    module: str = ""
    function: str = ""
    seconds: float = 0.0

    def load(self) -> TorchModel:
        """Imports the module and calls the function.

        Raises BadInput, with the user's own line, when the code raises or takes too long, when it returns
        something else, and when the example inputs do not fit.
        """
        from pipeline.export.module import TorchModel

        import_from_here()
        what = f"{self.module}:{self.function}"
        with guarded(f"importing {self.module}", self.seconds):
            module = importlib.import_module(self.module)
        function = getattr(module, self.function, None)
        if not callable(function):
            raise BadInput(
                f"{self.module} has no function {self.function!r}{nearest_name(module, self.function)}"
            )
        with guarded(what, self.seconds):
            value = function()
        return TorchModel.of(value, what, self.seconds)


def open_module(reference: str, recipe: SourceRecipe) -> ModuleSource:
    """The source that `reference`, 'package.module:function', names. Raises BadInput when there is no such module."""
    match = REFERENCE.fullmatch(reference)
    if match is None:
        raise BadInput(f"{reference!r} is no package.module:function")
    module, function = match.groups()
    files = _files(module)
    folder = files[0].parent if files else Path.cwd()
    return ModuleSource(
        name=function,
        kind="tensors",
        folder=folder,
        files=files,
        module=module,
        function=function,
        seconds=recipe.load_seconds,
    )


def _files(module: str) -> tuple[Path, ...]:
    """The module's file, and the other Python files of its package unless it is an installed one.

    Raises BadInput when there is no such module.
    """
    top, *rest = module.split(".")
    spec = _top_spec(top)
    folders = [Path(place) for place in (spec.submodule_search_locations or ())] if spec is not None else []
    origin = Path(spec.origin) if spec is not None and spec.has_location and spec.origin else None
    if rest:
        origin = _below(folders, rest)
    if spec is None or (rest and origin is None):
        raise BadInput(
            f"no Python module {module} in the current folder or among the installed packages; run in the folder "
            "that holds it, or install it"
        )
    if origin is None:
        return ()
    if "site-packages" in origin.parts or not folders:
        return (origin,)
    others = {path for folder in folders for path in folder.rglob("*.py")} - {origin}
    return (origin, *sorted(others))


def _top_spec(name: str) -> ModuleSpec | None:
    """Where a top-level module or package lies; the current folder comes first. Nothing is imported."""
    importlib.invalidate_caches()
    try:
        return PathFinder.find_spec(name, [str(Path.cwd()), *sys.path]) or importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None


def _below(folders: list[Path], parts: list[str]) -> Path | None:
    """The file of a module below a package's folders. (importlib imports the packages on its way.)"""
    for part in parts[:-1]:
        folders = [folder / part for folder in folders if (folder / part).is_dir()]
    names = (f"{parts[-1]}/__init__.py", f"{parts[-1]}.py")
    return next((folder / name for folder in folders for name in names if (folder / name).is_file()), None)
