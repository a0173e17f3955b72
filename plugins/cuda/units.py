"""Which sources of this folder a translation unit is made of, and which units an operator needs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

FOLDER = Path(__file__).parent
CORE = ("operator.cpp", "interface.cpp", "device.cu")
"""Units that every operator needs."""

_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)
_OPERATOR = re.compile(r'\bOperator\s+\w+\s*=\s*\{\s*"(\w+)"')


def include_folders(folder: Path = FOLDER) -> tuple[Path, ...]:
    """Folders that quoted includes are looked for in; the emulator's last."""
    return (folder / "include", folder / "csrc", folder / "emulator")


def closure(unit: Path, folders: Sequence[Path]) -> list[Path]:
    """`unit` and all headers of ours that it includes, directly or not, in a fixed order."""
    found: dict[Path, None] = {}
    waiting = [unit]
    while waiting:
        source = waiting.pop()
        if source in found:
            continue
        found[source] = None
        for name in _INCLUDE.findall(source.read_text()):
            places = (folder / name for folder in (source.parent, *folders))
            header = next((place for place in places if place.is_file()), None)
            if header is not None:
                waiting.append(header)
    return sorted(found)


def unit_hash(unit: Path, folders: Sequence[Path], settings: object) -> str:
    """Hash of everything that decides an object file: the sources' texts, and `settings` (flags, compiler)."""
    digest = hashlib.sha256(repr(settings).encode())
    for source in closure(unit, folders):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return digest.hexdigest()[:20]


def all_units(folder: Path = FOLDER) -> list[Path]:
    """All translation units of csrc/."""
    return sorted(path for path in (folder / "csrc").iterdir() if path.suffix in (".cu", ".cpp"))


def operators_of(unit: Path) -> list[str]:
    """Names of the operators that a unit describes."""
    return _OPERATOR.findall(unit.read_text())


def units_of(operators: Iterable[str], folder: Path = FOLDER) -> list[Path]:
    """The units that these operators need: their own, the core, and for each header `x.hpp` of csrc/ that one of
    them includes, the units `x.*` and `x_*`. Raises KeyError for an operator that no unit describes.
    """
    units = all_units(folder)
    needed = {folder / "csrc" / name for name in CORE}
    for operator in operators:
        own = [unit for unit in units if operator in operators_of(unit)]
        if not own:
            known = sorted(name for unit in units for name in operators_of(unit))
            raise KeyError(f"no unit describes the operator {operator!r}; there are {known}")
        needed.update(own)
    while True:
        stems = {
            source.stem
            for unit in needed
            for source in closure(unit, include_folders(folder))
            if source.suffix == ".hpp" and source.parent == folder / "csrc"
        }
        more = {u for u in units if any(u.stem == stem or u.stem.startswith(f"{stem}_") for stem in stems)}
        if more <= needed:
            return sorted(needed)
        needed |= more
