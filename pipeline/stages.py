"""The runner: runs a stage when something that decides its result has changed, and publishes what it made."""

from __future__ import annotations

import functools
import hashlib
import platform
import shlex
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from model_repo.runtime.contract import EngineSpec
from model_repo.runtime.errors import BadInput, GateFailed
from model_repo.runtime.manifest import FileRecord, Manifest, sha256_of_json

from .disk import FreeBytes, check_room, free_bytes, write_errors
from .hashes import HashCache
from .memory import give_back
from .packages import missing_packages, versions
from .workspace import HASHES, WEIGHTS, Workspace

ROOT = Path(__file__).resolve().parent.parent
"""The folder that holds the import packages."""

Parity = Mapping[str, Any] | str
"""Measured figures, or 'not run: <reason>'."""


class Progress(Protocol):
    """Where a build says what it is doing."""

    def started(self, stage: str) -> None:
        """A stage begins to run."""

    def advanced(self, done: int, total: int) -> None:
        """The stage that runs has done so many of its pieces of work."""

    def finished(self, row: StageRow) -> None:
        """A stage ended, or was found unchanged."""

    def say(self, text: str) -> None:
        """One line for the user."""

    def stand_aside(self) -> None:
        """Something else draws on the terminal until the next call."""


class Silent:
    """Progress that nobody watches."""

    def started(self, stage: str) -> None: ...

    def advanced(self, done: int, total: int) -> None: ...

    def finished(self, row: StageRow) -> None: ...

    def say(self, text: str) -> None: ...

    def stand_aside(self) -> None: ...


@dataclass(frozen=True)
class Product:
    """What a stage made. `files`: final name -> staged file or folder. `shared`: weights already in place."""

    files: Mapping[str, Path]
    shared: Sequence[Path] = ()
    parity: Parity = "not run: nothing to compare with"
    engine: EngineSpec | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """One step from artifact to artifact, and everything that decides its result.

    `code`: files and folders below ROOT whose text decides; `packages`: distributions whose version decides;
    `recipe`: the recipe's values that decide; `inputs`: files read, asked for when the stage's turn comes.
    `given`: what else decides, such as facts that an earlier stage recorded, asked for at the same time.
    `gate` raises GateFailed when the measured parity is outside the recipe's tolerance; `diagnose` then says, a line
    each, where in the product the difference comes from. `command` repeats just this stage. `needed_bytes`: room
    on the disk that it takes at most.
    """

    name: str
    code: Sequence[str]
    packages: Sequence[str]
    recipe: Mapping[str, Any]
    inputs: Callable[[], Sequence[Path]]
    run: Callable[[], Product]
    command: Sequence[str]
    given: Callable[[], Mapping[str, Any]] = dict
    gate: Callable[[Parity], None] = lambda parity: None
    diagnose: Callable[[Product], Sequence[str]] = lambda product: ()
    needed_bytes: int = 0


@dataclass(frozen=True)
class StageRow:
    """One line of the stage table. `seconds` and `parity` of an unchanged stage are those of its last run."""

    stage: str
    ran: bool
    seconds: float
    bytes: int
    parity: Parity


class Runner:
    """Runs stages in one workspace, whose lock the caller holds."""

    def __init__(
        self,
        workspace: Workspace,
        progress: Progress | None = None,
        free: FreeBytes = free_bytes,
        force: bool = False,
    ) -> None:
        self.workspace = workspace
        self.progress: Progress = progress or Silent()
        self.free = free
        self.force = force
        self.hashes = HashCache(workspace.path(HASHES))

    def run(self, stage: Stage) -> StageRow:
        """Runs `stage` unless its artifact is there, whole, and made from the same; publishes the result.

        Raises GateFailed when parity is outside the tolerance (nothing is published), BadInput for a disk
        that is full or not writable and for a missing package, and whatever the stage raises; the command
        that repeats the stage is added as a note.
        """
        with write_errors(self.workspace.folder, stage.needed_bytes, self.free):
            records = [self.hashes.record(path, self.workspace.folder) for path in stage.inputs()]
        key = self._key(stage, records)
        manifest = None if self.force else self._unchanged(stage, key)
        if manifest is not None:
            stage.gate(manifest.parity)
            row = StageRow(stage.name, False, manifest.seconds, _bytes(manifest), manifest.parity)
            self.progress.finished(row)
            return row
        check_room(self.workspace.folder, stage.needed_bytes, self.free)
        self.progress.started(stage.name)
        self._remove_damaged_weights()
        try:
            with write_errors(self.workspace.folder, stage.needed_bytes, self.free), missing_packages():
                row = self._run(stage, key, records)
        except BaseException as error:
            error.add_note(f"to repeat just this stage: {shlex.join(stage.command)}")
            raise
        finally:
            self.workspace.sweep()
            give_back()
        self.progress.finished(row)
        return row

    def _run(self, stage: Stage, key: str, inputs: Sequence[FileRecord]) -> StageRow:
        begin = time.perf_counter()
        product = stage.run()
        seconds = time.perf_counter() - begin
        self._judge(stage, product)
        manifest = Manifest(
            stage=stage.name,
            recipe=stage.recipe,
            recipe_sha256=sha256_of_json(stage.recipe),
            inputs=tuple(inputs),
            outputs=tuple(self._records(product)),
            versions={"python": platform.python_version(), **versions(stage.packages)},
            seconds=round(seconds, 3),
            parity=product.parity,
            command=tuple(stage.command),
            engine=product.engine,
            details={"key": key, **product.details},
        )
        self.workspace.publish(product.files, manifest)
        for record in manifest.outputs:
            self.hashes.remember(self.workspace.path(record.path), record.sha256)
        self.hashes.save()
        return StageRow(stage.name, True, manifest.seconds, _bytes(manifest), product.parity)

    def _judge(self, stage: Stage, product: Product) -> None:
        """Raises GateFailed when parity is outside the tolerance, with what the diagnosis says as notes."""
        try:
            stage.gate(product.parity)
        except GateFailed as error:
            self.progress.say(f"{stage.name} is outside its tolerance; looking for the node that departs")
            for line in stage.diagnose(product):
                error.add_note(line)
            raise

    def _unchanged(self, stage: Stage, key: str) -> Manifest | None:
        """The stage's manifest if what it describes is there and has this key."""
        try:
            manifest = self.workspace.manifest(stage.name)
        except BadInput:
            return None  # damaged or of another version: the stage makes a new one
        if manifest is None or manifest.details.get("key") != key:
            return None
        for record in manifest.outputs:
            path = self.workspace.path(record.path)
            if not path.is_file() or self.hashes.sha256(path) != record.sha256:
                return None
        return manifest

    def _remove_damaged_weights(self) -> None:
        """Removes weights whose content is not what their name says: a writer trusts the names it finds."""
        folder = self.workspace.path(WEIGHTS)
        for path in folder.iterdir() if folder.is_dir() else ():
            if self.hashes.sha256(path) != path.name:
                path.unlink()

    def _key(self, stage: Stage, inputs: Sequence[FileRecord]) -> str:
        return sha256_of_json(
            {
                "stage": stage.name,
                "code": code_version(tuple(stage.code)),
                "packages": versions(stage.packages),
                "machine": platform.machine(),
                "recipe": stage.recipe,
                "given": stage.given(),
                "inputs": [[Path(record.path).name, record.sha256] for record in inputs],
            }
        )

    def _records(self, product: Product) -> Iterable[FileRecord]:
        """Records of all files of a product, under their final names."""
        for name, staged in product.files.items():
            for path in _files(staged):
                final = name if path == staged else f"{name}/{path.relative_to(staged).as_posix()}"
                yield FileRecord(final, self.hashes.sha256(path), path.stat().st_size)
        for path in product.shared:
            # A weight's name is the hash of its content: the writer has just computed it.
            self.hashes.remember(path, path.name)
            yield FileRecord(f"{WEIGHTS}/{path.name}", path.name, path.stat().st_size)


@functools.cache
def code_version(code: tuple[str, ...]) -> str:
    """Hash of the source text of files and folders below ROOT: changed code runs its stage again."""
    digest = hashlib.sha256()
    for entry in code:
        top = ROOT / entry
        for path in _files(top):
            if path.suffix in _SOURCE and "build" not in path.relative_to(ROOT).parts:
                digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0")
                digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()


_SOURCE = frozenset((".py", ".cpp", ".cc", ".c", ".h", ".hpp", ".cu", ".cuh"))


def _files(path: Path) -> list[Path]:
    """The file itself, or all files below a folder, sorted."""
    if path.is_file():
        return [path]
    return sorted(entry for entry in path.rglob("*") if entry.is_file())


def _bytes(manifest: Manifest) -> int:
    return sum(record.bytes for record in manifest.outputs)
