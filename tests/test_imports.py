"""The arrows of import: read from every file, not from what happens to be imported at run time."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = ("pipeline", "calibration", "plugins", "model_repo", "demo", "bench", "tests")
ALLOWED = {
    "model_repo.runtime": {"model_repo.runtime"},
    "model_repo.backends": {"model_repo.backends", "model_repo.runtime"},
    "model_repo.emit": {"model_repo.emit", "model_repo.backends", "model_repo.runtime"},
    "plugins": {"plugins", "model_repo.runtime"},
    "calibration": {"calibration", "plugins", "model_repo.runtime"},
    "pipeline": {
        "pipeline",
        "calibration",
        "plugins",
        "model_repo.emit",
        "model_repo.backends",
        "model_repo.runtime",
    },
}
"""What each part may import of the project. Demo, bench and tests may import everything; nothing imports them."""

RUNTIME_PACKAGES = {"numpy", "onnxruntime", "tokenizers", "jinja2", "PIL"}


class Import(NamedTuple):
    """One imported module, by its whole name."""

    file: Path
    line: int
    module: str
    relative: bool

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {self.module}"


def imports(folder: Path) -> Iterator[Import]:
    """Every import in every Python file below `folder`, also those within functions."""
    for file in sorted(folder.rglob("*.py")):
        if "build" in file.relative_to(ROOT).parts:
            continue
        package = file.relative_to(ROOT).parent.parts
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield Import(file, node.lineno, alias.name, False)
            elif isinstance(node, ast.ImportFrom):
                base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
                names = [".".join(filter(None, (base, node.module)))]
                if node.module is None or names[0] in ("model_repo", *OURS):
                    names = [f"{names[0]}.{alias.name}" for alias in node.names]
                for name in names:
                    yield Import(file, node.lineno, name, bool(node.level))


def part_of(module: str) -> str:
    """The part of the project that a module belongs to."""
    pieces = module.split(".")
    return ".".join(pieces[:2]) if pieces[0] == "model_repo" and len(pieces) > 1 else pieces[0]


@pytest.mark.parametrize("part", ALLOWED)
def test_arrows_go_one_way(part: str) -> None:
    folder = ROOT / part.replace(".", "/")
    found = [entry for entry in imports(folder) if entry.module.split(".")[0] in OURS]
    assert any(entry.relative for entry in found) or part == "calibration"
    wrong = [str(entry) for entry in found if part_of(entry.module) not in ALLOWED[part]]
    assert wrong == []


def test_the_runtime_carries_nothing_that_the_server_lacks() -> None:
    """It is copied into repositories under another name: relative imports, and five packages."""
    allowed = set(sys.stdlib_module_names) | RUNTIME_PACKAGES | {"__future__"}
    wrong = [
        str(entry)
        for entry in imports(ROOT / "model_repo" / "runtime")
        if not entry.relative and entry.module.split(".")[0] not in allowed
    ]
    assert wrong == []


def test_the_reader_sees_imports_of_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    package = tmp_path / "pipeline" / "sub"
    package.mkdir(parents=True)
    (package / "file.py").write_text(
        "import a.b\nfrom . import c\nfrom ..d import e\nfrom model_repo import emit\n"
        "def f():\n    from tests.x import y\n"
    )
    found = [(entry.module, entry.relative) for entry in imports(tmp_path / "pipeline")]
    assert found == [
        ("a.b", False),
        ("pipeline.sub.c", True),
        ("pipeline.d", True),
        ("model_repo.emit", False),
        ("tests.x", False),
    ]
