"""OUT/<model>: the folder that holds all artifacts of one model, and how they get into it.

An artifact is one or several files and their manifest, `<stage>.json`. It is there exactly when its manifest
is: publishing takes the old manifest away, moves the new files into place and then writes the new manifest,
so that a build killed at any moment leaves the old artifact or none.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from model_repo.runtime.errors import BadInput
from model_repo.runtime.manifest import Manifest

from .lock import NAME as LOCK
from .publish import publish

RECIPE = "recipe.yaml"
WEIGHTS = "weights"
HASHES = ".hashes.json"
BUILD = "build.json"
STAGING = ".staging-"
MANIFESTS = {
    "export": "export.json",
    "fuse": "fuse.json",
    "lower": "lower.json",
    "compile": "engine.json",
    "emit": "emit.json",
}
"""Manifest file of each stage that every build has, in the order in which the stages run."""

EXTRA_MANIFESTS = {"calibrate": "calibrate.json", "evaluate": "evaluate.json", "quantize": "quantize.json"}
"""Manifest files of stages that only some recipes need."""

ALL_MANIFESTS = {**MANIFESTS, **EXTRA_MANIFESTS}

EXPORTED = "export.onnx"
FUSED = "fuse.onnx"
SCALES = "scales.json"
ACCURACY = "accuracy.json"
ACCURACY_PICTURE = "accuracy.svg"
QUANTIZED = "quantize.onnx"
ENGINE = "engine.onnx"
LAYERS = "layers.json"
LAYERS_PICTURE = "layers.svg"
REPOSITORY = "repository"

_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_TEMPORARY = re.compile(r"\..+\.[0-9]+")  # .<name>.<process>: a single write that has not ended
_CONTENT = re.compile(r"[0-9a-f]{64}")


def lowered(target: str) -> str:
    """File name of the graph lowered for a target."""
    return f"lower.{target}.onnx"


def checked_name(name: str) -> str:
    """`name` itself when it can name folders and served models. Raises BadInput."""
    if not _SAFE_NAME.fullmatch(name):
        raise BadInput(
            f"model name {name!r} cannot be used: 1 to 64 letters, digits, '_', '-' or '.', no path, the "
            "first one a letter or a digit; rename the model's folder"
        )
    return name


class Workspace:
    """One model's folder. Everything that writes here holds the folder's lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        """Where the file or folder `name` lies once it is published."""
        return self.folder / name

    def staged(self, name: str) -> Path:
        """Where `name` is written before it is published: beside it, so that a graph finds `weights/`."""
        return self.folder / f"{STAGING}{name}"

    def manifest(self, stage: str) -> Manifest | None:
        """The stage's manifest; None without an artifact. Raises BadInput when it is unreadable."""
        path = self.path(ALL_MANIFESTS[stage])
        return Manifest.read(path) if path.exists() else None

    def publish(self, files: Mapping[str, Path], manifest: Manifest) -> None:
        """Moves staged files to their final names, given as keys, and writes their manifest last.

        What the stage made before and no longer makes is removed: a chat template that the model lost.
        """
        manifest_path = self.path(ALL_MANIFESTS[manifest.stage])
        try:
            old = self.manifest(manifest.stage)
        except BadInput:
            old = None
        manifest_path.unlink(missing_ok=True)
        for name, staged in files.items():
            publish(staged, self.path(name))
        for record in old.outputs if old is not None else ():
            if "/" not in record.path and record.path not in files:
                self.path(record.path).unlink(missing_ok=True)
        manifest.write(manifest_path)

    def withdraw(self, stage: str) -> None:
        """Removes what a stage made that the recipe no longer has, its manifest first; weights are collected later."""
        try:
            manifest = self.manifest(stage)
        except BadInput:
            manifest = None
        self.path(ALL_MANIFESTS[stage]).unlink(missing_ok=True)
        for record in manifest.outputs if manifest is not None else ():
            if "/" not in record.path:
                self.path(record.path).unlink(missing_ok=True)
        if stage == "emit" and self.path(REPOSITORY).is_dir():
            shutil.rmtree(self.path(REPOSITORY))

    def sweep(self) -> None:
        """Removes what builds that were killed left here: staged files, and temporaries of single writes."""
        if not self.folder.is_dir():
            return
        leftovers = [
            *self.folder.glob(f"{STAGING}*"),
            *(path for path in self.folder.glob(".*") if _TEMPORARY.fullmatch(path.name)),
            *(path for path in self.folder.glob(f"{WEIGHTS}/.*") if _TEMPORARY.fullmatch(path.name)),
        ]
        for path in leftovers:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def collect_weights(self) -> int:
        """Removes weights that no artifact lists any more; gives their bytes.

        Does nothing while a manifest is unreadable: what it lists is not known.
        """
        weights = self.path(WEIGHTS)
        if not weights.is_dir():
            return 0
        listed: set[str] = set()
        for stage in ALL_MANIFESTS:
            try:
                manifest = self.manifest(stage)
            except BadInput:
                return 0
            if manifest is not None:
                listed.update(record.path for record in manifest.outputs)
        freed = 0
        for path in weights.iterdir():
            if _CONTENT.fullmatch(path.name) and f"{WEIGHTS}/{path.name}" not in listed:
                freed += path.stat().st_size
                path.unlink()
        return freed

    def has_artifacts(self) -> bool:
        """Whether any stage has published something here."""
        return any(self.path(name).exists() for name in (*MANIFESTS.values(), REPOSITORY))

    def check_is_ours(self) -> None:
        """Raises BadInput when the folder holds files and none of them says that slipway made it."""
        if self.folder.is_symlink() and not self.folder.exists():
            raise BadInput(f"{self.folder} is a link to nothing; give another --output")
        if self.folder.exists() and not self.folder.is_dir():
            raise BadInput(f"{self.folder} is a file; --output names the folder that artifacts go to")
        if not self.folder.is_dir() or not any(self.folder.iterdir()):
            return
        marks = (RECIPE, HASHES, LOCK, REPOSITORY, *MANIFESTS.values())
        if not any(self.path(name).exists() for name in marks):
            raise BadInput(
                f"{self.folder} holds files that slipway did not make; --output names a new folder, an empty "
                "one, or one that slipway built"
            )
