"""The compile side: from a checkpoint to a served repository, stage by stage.

    from pipeline import Recipe, build

    result = build(Recipe.for_model("demo"), "build/demo")
    for row in result.rows:
        print(row.stage, row.seconds, row.bytes, row.parity)
    print(result.repository)

`Recipe` holds everything that decides what is built (`Recipe.load` reads YAML); `build` runs the stages whose
inputs changed and returns a `BuildResult`. Both raise `BadInput` for what cannot be used, and `build` raises
`GateFailed` when a stage's numbers are outside the recipe's tolerance (`model_repo.runtime.errors`).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .builder import BuildResult, build
    from .module_example import ModuleExample
    from .recipe import Recipe

__all__ = ["BuildResult", "ModuleExample", "Recipe", "build"]

_PLACES = {
    "BuildResult": "builder",
    "ModuleExample": "module_example",
    "Recipe": "recipe",
    "build": "builder",
}


def __getattr__(name: str) -> Any:
    """Imports on first use: the command line's help must not wait for numpy."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f".{_PLACES[name]}", __name__), name)
