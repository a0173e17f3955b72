"""What each kernel takes of a chip, as ptxas says it: `python -m plugins.cuda.resources [--arch ...]`.

Writes `resources.json` (every kernel and architecture) and `RESOURCES.md` (a line a kernel template) beside this file.
Registers bound how many warps an SM holds; stack and spill bytes lie in local memory, which is device memory.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from model_repo.runtime.errors import SlipwayError

from .build import Build, build
from .nvcc import DEFAULT_ARCHITECTURES, parse_architectures
from .units import FOLDER

JSON_FILE = FOLDER / "resources.json"
TABLE_FILE = FOLDER / "RESOURCES.md"

_ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


@dataclass(frozen=True)
class KernelResources:
    """One kernel on one architecture. `shared_bytes` is what is declared statically, without the dynamic part."""

    unit: str
    kernel: str
    architecture: str
    registers: int
    shared_bytes: int
    stack_bytes: int
    spill_store_bytes: int
    spill_load_bytes: int

    @property
    def template(self) -> str:
        """The kernel's name without its template arguments and namespaces."""
        return template_name(self.kernel)

    @property
    def local_bytes(self) -> int:
        """Stack, spill stores and spill loads added up: 0 when it keeps out of local memory."""
        return self.stack_bytes + self.spill_store_bytes + self.spill_load_bytes


def template_name(kernel: str) -> str:
    """`decode` of `void slipway::(anonymous namespace)::decode<__half, (int)64>(Params)`."""
    text = kernel.replace("(anonymous namespace)::", "").removeprefix("void ")
    return re.split(r"[<(]", text)[0].split("::")[-1].strip()


def parse(unit: str, words: str) -> list[KernelResources]:
    """Reads what `ptxas -v` printed for a unit. Kernels keep their mangled names."""
    found: list[KernelResources] = []
    entry: tuple[str, str] | None = None
    stack: Sequence[int] | None = None
    for line in words.splitlines():
        if match := _ENTRY.search(line):
            entry, stack = (match[1], match[2]), None
        elif entry and stack is None and (match := _STACK.search(line)):
            stack = [int(text) for text in match.groups()]
        elif entry and stack is not None and (match := _USED.search(line)):
            shared = _SHARED.search(line)
            found.append(
                KernelResources(unit, *entry, int(match[1]), int(shared[1]) if shared else 0, *stack)
            )
            entry = None
    return found


def resources_of(result: Build) -> list[KernelResources]:
    """All kernels of a build, demangled where `c++filt` is there; sorted by unit, kernel and architecture."""
    mangled = [kernel for unit in result.units for kernel in parse(unit.unit, unit.ptxas)]
    names = demangled([kernel.kernel for kernel in mangled])
    order = {a.name: i for i, a in enumerate(result.architectures)}
    read = [KernelResources(**{**asdict(k), "kernel": names[k.kernel]}) for k in mangled]
    return sorted(read, key=lambda k: (k.unit, k.kernel, order[k.architecture]))


def demangled(names: Iterable[str]) -> dict[str, str]:
    """C++ names by their mangled ones; the same names where binutils is not installed."""
    listed = sorted(set(names))
    try:
        result = subprocess.run(
            ["c++filt"], input="\n".join(listed), capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return {name: name for name in listed}
    return dict(zip(listed, result.stdout.splitlines(), strict=True))


def in_local_memory(kernels: Iterable[KernelResources]) -> list[str]:
    """Kernels that spill or keep arrays on a stack, in words. There should be none."""
    return [
        f"{k.kernel} on {k.architecture}: {k.stack_bytes} bytes of stack, "
        f"{k.spill_store_bytes} spilled, {k.spill_load_bytes} loaded again"
        for k in kernels
        if k.local_bytes
    ]


def table(kernels: Sequence[KernelResources], nvcc_version: str) -> str:
    """RESOURCES.md: a row a kernel template, a column an architecture."""
    columns = list(dict.fromkeys(k.architecture for k in sorted(kernels, key=_by_chip)))
    rows: dict[tuple[str, str], dict[str, list[KernelResources]]] = defaultdict(lambda: defaultdict(list))
    for kernel in kernels:
        rows[kernel.unit, kernel.template][kernel.architecture].append(kernel)
    lines = [
        "# Registers and local memory of the CUDA kernels",
        "",
        f"Written by `python -m plugins.cuda.resources` with nvcc {nvcc_version}; each kernel on its own is in "
        "`resources.json`.",
        "A row is a kernel template: how many kernels it gives, and on each architecture the least and the most "
        "registers of them, then bytes of",
        "local memory (stack and spills) where there are any. The limit is 255 registers a thread.",
        "",
        f"| unit | kernel | kernels | {' | '.join(columns)} |",
        f"| --- | --- | --- |{' --- |' * len(columns)}",
    ]
    for (unit, name), by_chip in sorted(rows.items()):
        count = max(len(found) for found in by_chip.values())
        cells = [_cell(by_chip.get(column, [])) for column in columns]
        lines.append(f"| `{unit}` | `{name}` | {count} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _by_chip(kernel: KernelResources) -> tuple[int, str]:
    number = re.sub(r"\D", "", kernel.architecture)
    return int(number or 0), kernel.architecture


def _cell(kernels: Sequence[KernelResources]) -> str:
    if not kernels:
        return ""
    registers = [kernel.registers for kernel in kernels]
    least, most = min(registers), max(registers)
    text = str(most) if least == most else f"{least} to {most}"
    local = max(k.local_bytes for k in kernels)
    return f"{text}, {local} B local" if local else text


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of `python -m plugins.cuda.resources`. Returns the exit code: 3 when a kernel uses local memory."""
    parser = argparse.ArgumentParser(
        prog="python -m plugins.cuda.resources", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--arch", default=DEFAULT_ARCHITECTURES, help="default: %(default)s")
    parser.add_argument("--jobs", type=int, help="units compiled at a time; default: one a core")
    parser.add_argument(
        "--output", type=Path, default=FOLDER, help="folder to write to; default: %(default)s"
    )
    given = parser.parse_args(arguments)
    try:
        result = build(parse_architectures(given.arch), jobs=given.jobs)
    except SlipwayError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    kernels = resources_of(result)
    record = {
        "nvcc": result.compiler.version,
        "architectures": [a.name for a in result.architectures],
        "kernels": [asdict(kernel) for kernel in kernels],
    }
    (given.output / JSON_FILE.name).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (given.output / TABLE_FILE.name).write_text(table(kernels, result.compiler.version), encoding="utf-8")
    wrong = in_local_memory(kernels)
    print(f"{len(kernels)} kernels; {len(wrong)} use local memory")
    for words in wrong:
        print(f"  {words}")
    return 3 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
