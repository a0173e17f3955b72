"""`check`: is what lies in a build's folder whole, consistent and within the recipe's tolerances?"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from model_repo.runtime.engine_files import verify_engine
from model_repo.runtime.errors import BadInput, GateFailed
from model_repo.runtime.executed import ON_CPU
from model_repo.runtime.manifest import Manifest, sha256_of_json

from .builder import stages_of
from .recipe import Recipe
from .workspace import ALL_MANIFESTS, EXTRA_MANIFESTS, RECIPE, REPOSITORY, WEIGHTS, Workspace

CONFIG = "config.pbtxt"


class Finding(NamedTuple):
    """One thing that was looked at. `problem` is empty when it is as it should be."""

    what: str
    problem: str = ""
    gate: bool = False  # a measured result outside its tolerance, not a damaged file


def check(folder: Path) -> list[Finding]:
    """Everything that can be verified about the build in `folder`; every file is read.

    Raises BadInput when `folder` holds no build.
    """
    workspace = Workspace(folder)
    if not folder.is_dir() or not workspace.has_artifacts():
        raise BadInput(f"{folder} holds no build; give a folder that `slipway build` wrote")
    findings: list[Finding] = []
    manifests: dict[str, Manifest] = {}
    for stage in ALL_MANIFESTS:
        findings += _stage(workspace, stage, manifests, optional=_optional(workspace, stage))
    findings += _parity(workspace, manifests)
    if "emit" in manifests:
        findings += _repository(workspace.path(REPOSITORY))
    return findings


def verdict(findings: list[Finding]) -> None:
    """Raises GateFailed when only parity is outside its tolerance, BadInput for every other problem."""
    problems = [finding for finding in findings if finding.problem]
    if not problems:
        return
    words = f"{len(problems)} of {len(findings)} checks failed: " + "; ".join(
        f"{finding.what}: {finding.problem}" for finding in problems
    )
    raise GateFailed(words) if all(finding.gate for finding in problems) else BadInput(words)


def _optional(workspace: Workspace, stage: str) -> bool:
    """Whether a build may lack the stage: the recipe that lies there does not have it."""
    if stage in EXTRA_MANIFESTS:
        return True
    try:
        return stage not in stages_of(Recipe.load(workspace.path(RECIPE)))
    except BadInput:
        return False  # unreadable, which is told of the recipe itself


def _stage(
    workspace: Workspace, stage: str, manifests: dict[str, Manifest], optional: bool
) -> Iterator[Finding]:
    """The stage's manifest, its files, and whether it was made from what lies there now."""
    name = ALL_MANIFESTS[stage]
    try:
        manifest = workspace.manifest(stage)
    except BadInput as error:
        yield Finding(name, str(error))
        return
    if manifest is None and optional:
        return
    if manifest is None:
        yield Finding(name, "missing; run slipway build again")
        return
    whole = manifest.stage == stage and manifest.recipe_sha256 == sha256_of_json(manifest.recipe)
    yield Finding(name, "" if whole else "its recipe hash is not that of its recipe; build it again")
    try:
        manifest.verify_outputs(workspace.folder)
        yield Finding(f"{stage}: {len(manifest.outputs)} files by sha256")
    except BadInput as error:
        yield Finding(f"{stage}: files", str(error))
    for earlier in manifests.values():
        yield from _chain(stage, manifest, earlier)
    if stage == "compile":
        yield _engine(manifest)
    manifests[stage] = manifest


def _chain(stage: str, manifest: Manifest, earlier: Manifest) -> Iterator[Finding]:
    """Whether files of an earlier stage that this one read are still the same."""
    made = {record.path: record.sha256 for record in earlier.outputs}
    read = [record for record in manifest.inputs if record.path in made]
    changed = [record.path for record in read if made[record.path] != record.sha256]
    if changed:
        yield Finding(
            f"{stage}: made from {earlier.stage}", f"{changed[0]} is newer; run slipway build again"
        )
    elif read and any(not record.path.startswith(WEIGHTS) for record in read):
        yield Finding(f"{stage}: made from this {earlier.stage}")


def _engine(manifest: Manifest) -> Finding:
    listed = {record.path for record in manifest.outputs}
    if manifest.engine is None:
        return Finding("engine section", "missing; run slipway compile again")
    for name in (manifest.engine.graph, manifest.engine.plugin):
        if name is not None and name not in listed:
            return Finding("engine section", f"it names {name}, which is not among the engine's files")
    return Finding("engine section")


def _parity(workspace: Workspace, manifests: dict[str, Manifest]) -> Iterator[Finding]:
    """Recorded parity against the tolerances of the recipe that lies there."""
    from .parity.compare import gate, in_words

    try:
        recipe = Recipe.load(workspace.path(RECIPE))
    except BadInput as error:
        yield Finding(RECIPE, str(error))
        return
    yield Finding(RECIPE)
    for stage, manifest in manifests.items():
        tolerance = recipe.parity.of(stage, recipe.quantize)
        built_only = manifest.engine is not None and manifest.engine.target not in ON_CPU
        if tolerance is None or built_only:
            continue
        what = f"{stage}: parity, {in_words(manifest.parity)}"
        if isinstance(manifest.parity, str):
            yield Finding(what, "it was not measured", gate=True)
            continue
        try:
            gate(stage, manifest.parity, tolerance, recipe.parity.setting(stage, recipe.quantize))
            yield Finding(what)
        except GateFailed as error:
            yield Finding(what, str(error), gate=True)


def _repository(repository: Path) -> Iterator[Finding]:
    """Every model's config read back by protobuf, its code parsed, its engine verified."""
    names = {path.name for path in repository.iterdir() if path.is_dir()}
    for name in sorted(names):
        model = repository / name
        try:
            config = read_config(model / CONFIG)
        except BadInput as error:
            yield Finding(f"{name}/{CONFIG}", str(error))
            continue
        yield Finding(f"{name}/{CONFIG}", _config_problem(config, name, names))
        for code in sorted(model.glob("*/model.py")):
            yield Finding(f"{name}/{code.parent.name}/model.py", _code_problem(code))
        for engine in sorted(model.glob("*/engine/engine.json")):
            yield _copied_engine(name, engine)


def read_config(path: Path) -> Any:
    """The `inference.ModelConfig` message in a config.pbtxt. Raises BadInput when it is none."""
    from google.protobuf import text_format  # type: ignore[import-untyped]
    from tritonclient.grpc import model_config_pb2

    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise BadInput(f"{path} is not a readable model config: {error}") from error


def _config_problem(config: Any, name: str, names: set[str]) -> str:
    if config.name != name:
        return f"it calls the model {config.name!r}; the folder is {name}"
    for step in config.ensemble_scheduling.step:
        if step.model_name not in names:
            return f"the ensemble uses {step.model_name!r}, which is not in the repository"
    return ""


def _code_problem(path: Path) -> str:
    try:
        ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        return f"it is not readable Python: {error}"
    return ""


def _copied_engine(name: str, engine: Path) -> Finding:
    what = f"{name}: engine by sha256"
    try:
        verify_engine(Manifest.read(engine), engine.parent)
    except BadInput as error:
        return Finding(what, str(error))
    return Finding(what)
