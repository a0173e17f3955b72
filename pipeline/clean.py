"""`clean`: removes what slipway built in a folder, and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from model_repo.runtime.errors import BadInput

from .disk import free_bytes, write_errors
from .lock import NAME as LOCK
from .lock import locked
from .workspace import ALL_MANIFESTS, BUILD, HASHES, RECIPE, REPOSITORY, WEIGHTS, Workspace

SERVER_LOG = "tritonserver.log"


def clean(folder: Path, say: Callable[[str], None]) -> int:
    """Removes the artifacts in `folder`, and the folder if nothing else is in it. Returns the bytes freed.

    Waits for a build that runs there. Raises BadInput when there is no folder or slipway did not make it.
    """
    if not folder.is_dir():
        raise BadInput(f"no folder {folder}; give one that `slipway build` wrote")
    workspace = Workspace(folder)
    workspace.check_is_ours()
    with write_errors(folder, 0, free_bytes):
        with locked(folder, say):
            workspace.sweep()
            freed = sum(_remove(path) for path in _artifacts(workspace))
            freed += workspace.collect_weights()
            weights = workspace.path(WEIGHTS)
            if weights.is_dir() and not any(weights.iterdir()):
                weights.rmdir()
        if not any(folder.iterdir()):
            folder.rmdir()
    return freed


def _artifacts(workspace: Workspace) -> list[Path]:
    """What lies there of everything that slipway writes, manifests first; weights are left to the collection."""
    paths = [workspace.path(name) for name in ALL_MANIFESTS.values()]
    for stage in ALL_MANIFESTS:
        try:
            manifest = workspace.manifest(stage)
        except BadInput:
            continue  # unreadable: its manifest goes, and a build that follows makes its files anew
        for record in manifest.outputs if manifest is not None else ():
            top = Path(record.path).parts[0]
            if top not in (WEIGHTS, REPOSITORY):
                paths.append(workspace.path(record.path))
    names = (REPOSITORY, RECIPE, BUILD, HASHES, SERVER_LOG)
    paths += [workspace.path(name) for name in names if name != LOCK]
    return [path for path in paths if path.exists()]


def _remove(path: Path) -> int:
    if path.is_dir():
        size = sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file())
        shutil.rmtree(path)
        return size
    if not path.exists():
        return 0
    size = path.stat().st_size
    path.unlink()
    return size
