"""Builds the kernels for the CPU emulator with g++, and runs cases on it.

`python -m plugins.cuda.emulated OPERATOR --scale small --flavour asan --seed 1` runs an operator's cases. Flavours:
plain (guard bytes around every buffer), asan (address and undefined-behaviour sanitizers), tsan (thread sanitizer,
which finds a missing barrier whatever the order in which threads ran). See `emulator/` for what is emulated.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from model_repo.runtime.errors import SlipwayError
from plugins.cpu.build import find_compiler
from plugins.toolchain import locked, run_command

from .case import Case, Outcome, Scale, faults, raw_bytes
from .library import DTYPES, MAX_RANK, Description
from .units import FOLDER, all_units, closure, include_folders, unit_hash, units_of

BUILD = FOLDER / "build" / "emulated"
FLAGS = (
    "-std=c++17",
    "-O0",  # compiling is most of the time: optimized, it takes two to four times as long, and little of it comes back
    "-g1",
    "-fPIC",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
    "-fno-strict-aliasing",
)
FLAVOURS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "asan": (
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=undefined",
        # What the address sanitizer reports anyway (null, object-size), and what no kernel can do wrong.
        "-fno-sanitize=null,object-size,pointer-overflow,vptr,return,nonnull-attribute,returns-nonnull-attribute",
        # Accesses are checked by calls: inline checks take the compiler twice as long.
        "--param=asan-instrumentation-with-call-threshold=0",
    ),
    "tsan": ("-fsanitize=thread",),
}
ENVIRONMENT = {
    "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
    "TSAN_OPTIONS": "halt_on_error=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}


@dataclass(frozen=True)
class Build:
    """A way to compile the sources: whose operators (None: all), for which sanitizer, from which folder.

    defines: macros, each given to the units that mention it. flags come after those of the flavour. left_out: units
    that are not compiled; a call of theirs ends the process. Who needs the same object waits for it.
    """

    flavour: str = "plain"
    operators: tuple[str, ...] | None = None
    folder: Path = FOLDER
    defines: tuple[str, ...] = ()
    cache: Path = BUILD
    flags: tuple[str, ...] = field(default=FLAGS)
    left_out: tuple[str, ...] = ()

    def runner(self) -> Path:
        """Compiles the program that runs files of cases. Raises SlipwayError with the compiler's words."""
        return self._linked("runner", [self.folder / "emulator" / "runner.cpp"], ())

    def library(self) -> Path:
        """Compiles a shared library with the C interface of the kernels, emulated. Only for flavour plain."""
        return self._linked("libslipway_emulated.so", [], ("-shared", "-Wl,-Bsymbolic"))

    def program(self, source: Path) -> Path:
        """Compiles a program from one source of its own, which may use the kernels' headers and the emulator."""
        return self._linked(source.stem, [source], ())

    def _linked(self, name: str, more: Sequence[Path], flags: Sequence[str]) -> Path:
        units = all_units(self.folder) if self.operators is None else units_of(self.operators, self.folder)
        units = [unit for unit in units if unit.name not in self.left_out]
        if self.left_out:
            # Bound at once: bound lazily, the loader trips over symbols that are not there.
            flags = (*flags, "-Wl,--unresolved-symbols=ignore-all", "-Wl,-z,now")
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            objects = list(pool.map(self._object, [*units, *more]))
        stems = "-".join(path.stem for path in objects)
        target = self.cache / self.flavour / f"{hashlib.sha256(stems.encode()).hexdigest()[:20]}-{name}"
        compiler = find_compiler().command
        _publish(target, [*compiler, *FLAVOURS[self.flavour], *flags, *map(str, objects), "-lpthread", "-o"])
        return target

    def _object(self, unit: Path) -> Path:
        compiler = find_compiler()
        folders = include_folders(self.folder)
        text = "".join(source.read_text() for source in closure(unit, folders))
        defines = [f"-D{name}" for name in self.defines if name.partition("=")[0] in text]
        flags = [*FLAVOURS[self.flavour], *self.flags, *defines]
        target = self.cache / self.flavour / f"{unit.stem}-{unit_hash(unit, folders, (flags, compiler))}.o"
        includes = [f"-I{folder}" for folder in folders]
        _publish(target, [*compiler.command, *flags, *includes, "-x", "c++", "-c", str(unit), "-o"])
        return target


def _publish(target: Path, command: Sequence[str]) -> None:
    """Runs `command` with a name beside `target` appended, and renames what it wrote; unless it is there already."""
    if target.is_file():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target.with_suffix(".lock")), tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        if target.is_file():  # another process has made it while this one waited
            return
        made = Path(scratch) / target.name
        run_command([*command, str(made)])
        made.replace(target)


def run(
    cases: Sequence[Case],
    build: Build,
    *,
    seed: int = 1,
    compute_capability: int = 80,
    timeout: float = 600.0,
) -> list[Outcome]:
    """Runs cases on the emulated device, in one process. `seed` decides the order in which threads run.

    When the process ends early (a sanitizer's report, a deadlock under tsan), the case it was in and those after it get
    code -1 and the end of what it said.
    """
    if not cases:
        return []
    runner = build.runner()
    descriptions = {
        operator: _description(runner, operator) for operator in {case.operator for case in cases}
    }
    with tempfile.TemporaryDirectory() as scratch:
        given, results = Path(scratch) / "cases", Path(scratch) / "results"
        given.write_bytes(
            struct.pack("<I", len(cases))
            + b"".join(_encoded(case, descriptions[case.operator]) for case in cases)
        )
        environment = {
            **os.environ,
            **ENVIRONMENT,
            "SLIPWAY_EMULATED_COMPUTE_CAPABILITY": str(compute_capability),
        }
        try:
            process = subprocess.run(
                [str(runner), str(given), str(results), str(seed)],
                capture_output=True,
                text=True,
                errors="replace",
                env=environment,
                timeout=timeout,
                check=False,
            )
            words, code = process.stderr, process.returncode
        except subprocess.TimeoutExpired as expired:
            words = (expired.stderr or b"").decode(errors="replace") + f"\nno end within {timeout:g} s"
            code = -1
        left = results.read_bytes() if results.is_file() else b""
    outcomes = _decoded(cases, descriptions, left)
    if len(outcomes) < len(cases) or code != 0:
        lines = [line for line in words.splitlines() if not line.startswith("case ")]
        ended = Outcome(-1, f"the process ended with code {code}:\n" + "\n".join(lines[:60]), {})
        outcomes = outcomes[: len(cases) - 1] if len(outcomes) == len(cases) else outcomes
        outcomes += [ended] * (len(cases) - len(outcomes))
    return outcomes


@cache
def _description(runner: Path, operator: str) -> Description:
    """What a runner says of an operator. Raises SlipwayError when it has no such operator."""
    environment = {**os.environ, **ENVIRONMENT}
    said = subprocess.run([runner, operator], capture_output=True, text=True, env=environment, check=False)
    if said.returncode != 0:
        raise SlipwayError(f"{runner} does not describe {operator!r}: {said.stderr.strip()}")
    return Description.from_json(said.stdout)


def _encoded(case: Case, description: Description) -> bytes:
    """A case in the runner's format: names, each tensor (header, whether its address is NULL, bytes), attributes."""
    parts = [_text(case.name), _text(case.operator)]
    start = case.start()
    description.check_names(case.tensors, case.attributes)
    parts.append(struct.pack("<I", len(description.tensors)))
    for parameter in description.tensors:
        tensor = start.get(parameter.name)
        if tensor is None:
            parts.append(struct.pack("<ii12qiq", 0, 0, *[0] * 12, 0, 0))
            continue
        span = spanned(tensor)
        padding = [0] * (MAX_RANK - tensor.dim())
        null = int(getattr(tensor, "null_address", False))
        parts.append(
            struct.pack(
                "<ii12qiq",
                DTYPES[tensor.dtype],
                tensor.dim(),
                *tensor.shape,
                *padding,
                *tensor.stride(),
                *padding,
                null,
                span.numel(),
            )
        )
        parts.append(span.numpy().tobytes())
    values = description.attribute_values(case.attributes)
    parts.append(struct.pack(f"<I{len(values)}d", len(values), *values))
    return b"".join(parts)


def spanned(tensor: Tensor) -> Tensor:
    """The bytes from a tensor's first element to its last, uint8: the gaps of a strided tensor included."""
    if tensor.numel() == 0:
        return torch.empty(0, dtype=torch.uint8)
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return raw_bytes(tensor.as_strided((span,), (1,)))


def _text(text: str) -> bytes:
    return struct.pack("<I", len(text.encode())) + text.encode()


def _decoded(cases: Sequence[Case], descriptions: dict[str, Description], data: bytes) -> list[Outcome]:
    """As many outcomes as `data` holds whole."""
    outcomes: list[Outcome] = []
    at = 0
    for case in cases:
        if len(data) < at + 8:
            break
        code, length = struct.unpack_from("<iI", data, at)
        message = data[at + 8 : at + 8 + length].decode(errors="replace")
        at += 8 + length
        tensors = {}
        start = case.start()
        for parameter in descriptions[case.operator].tensors:
            before = start.get(parameter.name)
            if before is None:
                continue
            count = spanned(before).numel()
            if len(data) < at + count:
                return outcomes
            raw = torch.frombuffer(bytearray(data[at : at + count]), dtype=torch.uint8) if count else None
            tensors[parameter.name] = (
                raw.view(before.dtype).as_strided(before.shape, before.stride())
                if raw is not None
                else before.clone()
            )
            at += count
        outcomes.append(Outcome(code, message, tensors))
    return outcomes


def check(
    cases: Iterable[Case],
    build: Build,
    *,
    seed: int = 1,
    compute_capability: int = 80,
    timeout: float = 600.0,
) -> dict[str, list[str]]:
    """Runs cases and compares. Returns what is wrong, by the name of the case; empty when all is right.

    Cases for devices of a higher compute capability run on an emulated one of theirs. The rest: see `run`.
    """
    listed = list(cases)
    if len({case.name for case in listed}) < len(listed):
        raise ValueError("two cases have the same name")
    devices: dict[int, list[Case]] = {}
    for case in listed:
        devices.setdefault(max(compute_capability, case.least_compute_capability), []).append(case)
    found = {}
    for capability, group in devices.items():
        outcomes = run(
            group,
            build,
            seed=seed,
            compute_capability=capability,
            timeout=timeout,
        )
        found.update(
            {case.name: faults(case, outcome) for case, outcome in zip(group, outcomes, strict=True)}
        )
    return {name: words for name, words in found.items() if words}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of `python -m plugins.cuda.emulated`. Returns the exit code: 3 when a case is wrong."""
    parser = argparse.ArgumentParser(prog="python -m plugins.cuda.emulated", description=__doc__)
    parser.add_argument("operator")
    parser.add_argument("--scale", choices=[scale.value for scale in Scale], default=Scale.SMALL.value)
    parser.add_argument("--flavour", choices=list(FLAVOURS), default="plain")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--compute-capability", type=int, default=80)
    parser.add_argument("--case", default="", help="only cases whose name holds this text")
    given = parser.parse_args(arguments)
    module = importlib.import_module(f"plugins.checks.{given.operator}")
    cases = [case for case in module.cases(Scale(given.scale), given.seed) if given.case in case.name]
    operators = tuple(sorted({case.operator for case in cases}))
    build = Build(given.flavour, operators)
    begun = time.perf_counter()
    try:
        build.runner()
        built = time.perf_counter()
        wrong = check(cases, build, seed=given.seed, compute_capability=given.compute_capability)
    except SlipwayError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    ended = time.perf_counter()
    for name, words in wrong.items():
        print(f"WRONG {name}: " + "; ".join(words))
    print(
        f"{len(cases) - len(wrong)} of {len(cases)} cases right "
        f"(build {built - begun:.1f} s, run {ended - built:.1f} s)"
    )
    return 3 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
