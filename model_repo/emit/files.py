"""The files of one Triton model: its config, and a version folder that holds everything it needs."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .. import backends, runtime
from ..backends.interface import FILES
from ..runtime.manifest import FileRecord, Manifest, sha256_of_json
from .configs import ModelConfig

PACKAGE = "slipway_runtime"
VERSION = "1"
ENGINE = "engine"
PILLOW = "pillow>=12"
"""What models that decode images require."""


@dataclass(frozen=True)
class ModelFiles:
    """One Triton model. An ensemble has a config only.

    `beside` are texts by file name that lie beside the config. `module` names the module of
    `model_repo.backends` that it runs; `files` are copied into the version folder under their keys (relative
    paths); `requirements` are lines of requirements.txt.
    """

    config: ModelConfig
    module: str | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    requirements: tuple[str, ...] = ()
    beside: Mapping[str, str] = field(default_factory=dict)

    def write(self, repository: Path) -> None:
        """Writes the model's folder below `repository`. Raises OSError."""
        folder = repository / self.config.name
        version = folder / VERSION
        version.mkdir(parents=True)
        for name, text in {"config.pbtxt": self.config.to_pbtxt(), **self.beside}.items():
            (folder / name).write_text(text, encoding="utf-8")
        if self.module is None:
            return
        _copy_package(version / PACKAGE)
        model = f"from {PACKAGE}.backends.{self.module} import TritonPythonModel as TritonPythonModel\n"
        (version / "model.py").write_text(model, encoding="utf-8")
        requirements = "".join(f"{line}\n" for line in self.requirements)
        (version / "requirements.txt").write_text(requirements, encoding="utf-8")
        for name, source in self.files.items():
            target = version / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        self._write_manifest(version)

    def _write_manifest(self, version: Path) -> None:
        """Hashes of what was written; the engine's own manifest vouches for the engine's files."""
        written = [
            path
            for path in sorted(version.rglob("*"))
            if path.is_file() and path.relative_to(version).parts[0] != ENGINE
        ]
        recipe = {"module": self.module, "parameters": dict(self.config.parameters)}
        Manifest(
            stage="emit",
            recipe=recipe,
            recipe_sha256=sha256_of_json(recipe),
            inputs=(),
            outputs=tuple(FileRecord.of(path, version) for path in written),
            versions={},
            seconds=0.0,
            parity="not run: files are copied",
            command=(),
        ).write(version / FILES)


def _copy_package(package: Path) -> None:
    """The runtime and the Triton models over it, as they are here, without caches."""
    package.mkdir()
    (package / "__init__.py").write_text(
        '"""Slipway\'s runtime, copied by `slipway emit`."""\n', encoding="utf-8"
    )
    for module in (runtime, backends):
        (root,) = module.__path__
        shutil.copytree(root, package / Path(root).name, ignore=shutil.ignore_patterns("__pycache__"))
