"""`build`: all stages of one model, in order, under the folder's lock."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from model_repo.runtime.errors import BadInput

from .disk import FreeBytes, check_room, free_bytes, write_errors
from .lock import NAME as LOCK
from .lock import locked
from .packages import missing_packages
from .recipe import Recipe
from .stages import Parity, Product, Progress, Runner, Silent, Stage, StageRow
from .steps import calibrate as calibrate_step
from .steps import compile as compile_step
from .steps import compile_graph as compile_graph_step
from .steps import compile_plan as compile_plan_step
from .steps import emit as emit_step
from .steps import evaluate as evaluate_step
from .steps import export as export_step
from .steps import fuse as fuse_step
from .steps import lower as lower_step
from .steps import quantize as quantize_step
from .steps.context import BuildContext
from .targets import get_target
from .workspace import ALL_MANIFESTS, BUILD, ENGINE, RECIPE, REPOSITORY, STAGING, Workspace

STEPS: Mapping[str, Callable[[BuildContext], Stage]] = {
    "export": export_step.stage,
    "fuse": fuse_step.stage,
    "calibrate": calibrate_step.stage,
    "quantize": quantize_step.stage,
    "lower": lower_step.stage,
    "compile": lambda context: _compiling(context).stage(context),
    "evaluate": evaluate_step.stage,
    "emit": emit_step.stage,
}
"""All stages in the order in which they run."""


def _compiling(context: BuildContext) -> ModuleType:
    """The module of the stage compile for the recipe's target."""
    target = get_target(context.recipe.target.name).descriptor
    if target.on_cpu:
        return compile_step
    return compile_graph_step if target.engine == ENGINE else compile_plan_step


EXTRA: Mapping[str, Callable[[Recipe], bool]] = {
    "calibrate": calibrate_step.needed,
    "evaluate": evaluate_step.needed,
    "quantize": quantize_step.needed,
}
"""Stages that only some recipes need, and which."""


@dataclass(frozen=True)
class BuildResult:
    """What a build made: one row a stage. `repository` exists when the stage `emit` was among them."""

    folder: Path
    rows: tuple[StageRow, ...]
    seconds: float

    @property
    def repository(self) -> Path:
        """The Triton model repository."""
        return self.folder / REPOSITORY

    @property
    def engine(self) -> Path:
        """The compiled engine's file."""
        manifest = Workspace(self.folder).manifest("compile")
        spec = None if manifest is None else manifest.engine
        return self.folder / (ENGINE if spec is None else spec.graph)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "folder": str(self.folder),
            "repository": str(self.repository),
            "seconds": self.seconds,
            "stages": [asdict(row) for row in self.rows],
        }


def build(
    recipe: Recipe,
    output: Path | str,
    *,
    progress: Progress | None = None,
    stages: Sequence[str] | None = None,
    force: bool = False,
    free: FreeBytes = free_bytes,
    steps: Mapping[str, Callable[[BuildContext], Stage]] = STEPS,
) -> BuildResult:
    """Runs `stages` of `recipe` (None: all that it needs) in the folder `output`; what is unchanged is not run again,
    unless `force`.

    Waits for another build of the same folder. `free` gives the free bytes of a file system. Raises BadInput
    (bad source, no room, not writable, a missing package), GateFailed (parity outside the recipe's tolerance)
    and SlipwayError; the artifacts of stages that did not end well are those from before, and a folder that
    got nothing is not left behind.
    """
    folder = Path(output)
    workspace = Workspace(folder)
    watcher = progress or Silent()
    whole = stages is None
    names = stages_of(recipe, steps) if stages is None else tuple(stages)
    context = BuildContext(recipe, workspace, exports="export" in names)
    context.progress = watcher
    with missing_packages(), write_errors(folder, 0, free):
        workspace.check_is_ours()
        get_target(recipe.target.name).check(recipe)
        if context.exports:
            context.source  # noqa: B018  # refuses a bad source before anything is written
            _check_room_for_all(context, names, steps, free)
        elif not folder.is_dir():
            raise BadInput(f"no folder {folder}; run `slipway build MODEL --output {folder}` first")
        made = _missing_folders(folder)
        with locked(folder, watcher.say):
            try:
                return _run(context, names, steps, Runner(workspace, watcher, free, force), whole)
            finally:
                _remove_if_nothing_came(workspace, made)


def stages_of(
    recipe: Recipe, steps: Mapping[str, Callable[[BuildContext], Stage]] = STEPS
) -> tuple[str, ...]:
    """The stages that `recipe` needs, in order."""
    return tuple(name for name in steps if name not in EXTRA or EXTRA[name](recipe))


def _run(
    context: BuildContext,
    stages: Sequence[str],
    steps: Mapping[str, Callable[[BuildContext], Stage]],
    runner: Runner,
    whole: bool,
) -> BuildResult:
    """The stages, then the files about the build, then the removal of what nothing needs any more.

    `whole`: these are all stages of the recipe; what stages that it lacks have left here is removed.
    """
    workspace = context.workspace
    begin = time.perf_counter()
    workspace.sweep()
    rows = []
    for name in stages:
        rows.append(runner.run(_gated(steps[name](context), context)))
        # From the first artifact on: the commands that repeat a later stage read the recipe here.
        _write(workspace.path(RECIPE), context.recipe.to_yaml())
    for name in EXTRA if whole else ():
        if name not in stages:
            workspace.withdraw(name)
    runner.hashes.save()
    workspace.collect_weights()
    result = BuildResult(workspace.folder, tuple(rows), round(time.perf_counter() - begin, 3))
    if whole:
        _write(workspace.path(BUILD), json.dumps(result.to_dict(), indent=2) + "\n")
    return result


def _gated(stage: Stage, context: BuildContext) -> Stage:
    """The stage with the recipe's tolerance, where the recipe has one for it."""
    tolerance = context.recipe.parity.of(stage.name, context.recipe.quantize)
    if tolerance is None:
        return stage

    def judge(parity: Parity) -> None:
        from .parity.compare import gate

        gate(
            stage.name, parity, tolerance, context.recipe.parity.setting(stage.name, context.recipe.quantize)
        )

    def diagnose(product: Product) -> Sequence[str]:
        from .steps.locating import diagnosis

        return diagnosis(context, stage.name, product)

    return dataclasses.replace(stage, gate=judge, diagnose=diagnose)


def _check_room_for_all(
    context: BuildContext,
    stages: Sequence[str],
    steps: Mapping[str, Callable[[BuildContext], Stage]],
    free: FreeBytes,
) -> None:
    """Raises BadInput when what has never been built here will not fit. Each stage is checked again later."""
    missing = [name for name in stages if not context.workspace.path(ALL_MANIFESTS[name]).exists()]
    needed = sum(steps[name](context).needed_bytes for name in missing)
    check_room(context.workspace.folder, needed, free)


def _missing_folders(folder: Path) -> list[Path]:
    """`folder` and the folders above it that do not exist yet, innermost first."""
    folder = folder.absolute()
    return [path for path in (folder, *folder.parents) if not path.exists()]


def _remove_if_nothing_came(workspace: Workspace, made: Sequence[Path]) -> None:
    """Removes the folders that this build made if it published nothing; the lock goes last, still held."""
    if not made or workspace.has_artifacts():
        return
    for path in workspace.folder.iterdir():
        if path.name == LOCK:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    workspace.path(LOCK).unlink(missing_ok=True)
    for folder in made:
        try:
            folder.rmdir()
        except OSError:
            return  # another build waits here, or has put something beside


def _write(path: Path, text: str) -> None:
    """Writes a small file that readers see whole."""
    temporary = path.with_name(f"{STAGING}{path.name}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
