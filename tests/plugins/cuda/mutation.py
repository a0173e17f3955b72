"""Plants faults in the kernels and says which the cases find: `python -m tests.plugins.cuda.mutation [SUITE ...]`.

A fault is a replacement of text in one source; the kernels carry no test hooks. For each one the operator is built for
the emulator, and its `quick` cases run with a few seeds: plain (wrong numbers, overwritten guard bytes, deadlocks),
under the thread sanitizer (missing barriers and waits, whatever the schedule), under the address and
undefined-behaviour sanitizers. It is caught by the first run in which anything is wrong.

`faults/SUITE.py` holds FAULTS: list[Fault], and may hold
    OPERATOR: str                  the operator whose cases run, where the suite's name is another
    DEFINES: tuple[str, ...]       macros for a smaller build, such as "SLIPWAY_MAX_HEAD_SIZE=64"
    LEFT_OUT: tuple[str, ...]      units of csrc/ that the chosen cases do not need
    COMPUTE_CAPABILITY: int        of the emulated device, 80 if it is not said
    def chosen(case: Case) -> bool  which of the quick cases run; all if it is not there
    def cases() -> list[Case]       what runs instead of the operator's quick cases

Verdicts go to `faults/results.json`, with the hashes of the sources that they were found with.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from model_repo.runtime.errors import SlipwayError
from plugins.console import print_table, progress
from plugins.cuda.case import Case, Scale
from plugins.cuda.emulated import BUILD, Build, check
from plugins.cuda.units import FOLDER
from plugins.toolchain import locked

FAULTS_FOLDER = Path(__file__).parent / "faults"
RESULTS = FAULTS_FOLDER / "results.json"
COMMAND = "python -m tests.plugins.cuda.mutation"
SEEDS = (1, 2, 3)
LEAST_CAUGHT = 0.95
SYNCHRONISATION = re.compile(r"sync|wait|fence|atomic|arrive|commit", re.IGNORECASE)


@dataclass(frozen=True)
class Fault:
    """`old`, which occurs exactly once in `file` (relative to plugins/cuda/), becomes `new`."""

    name: str
    file: str
    old: str
    new: str

    def applied(self, text: str) -> str:
        """`text` with the fault in it. Raises ValueError unless `old` occurs exactly once."""
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"fault {self.name!r}: {self.file} holds its old text {count} times, not once")
        return text.replace(self.old, self.new)


@dataclass(frozen=True)
class Verdict:
    """What became of a fault. flavour: the build that caught it, "" for none; how: its first words."""

    name: str
    flavour: str
    seed: int
    how: str
    seconds: float

    @property
    def caught(self) -> bool:
        return self.flavour != ""


@dataclass(frozen=True)
class Suite:
    """The faults of one operator and the cases that must find them."""

    name: str
    operator: str
    faults: tuple[Fault, ...]
    defines: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    compute_capability: int = 80
    chosen: Callable[[Case], bool] = field(default=lambda case: True)
    instead: Callable[[], list[Case]] | None = None

    @classmethod
    def load(cls, name: str) -> Suite:
        """Reads `faults/NAME.py`."""
        module = importlib.import_module(f"tests.plugins.cuda.faults.{name}")
        return cls(
            name,
            getattr(module, "OPERATOR", name),
            tuple(module.FAULTS),
            getattr(module, "DEFINES", ()),
            getattr(module, "LEFT_OUT", ()),
            getattr(module, "COMPUTE_CAPABILITY", 80),
            getattr(module, "chosen", lambda case: True),
            getattr(module, "cases", None),
        )

    def cases(self) -> list[Case]:
        """The suite's own cases, or the operator's quick cases that it chose."""
        if self.instead is not None:
            return self.instead()
        module = importlib.import_module(f"plugins.checks.{self.operator}")
        return [case for case in module.cases(Scale.QUICK, 1) if self.chosen(case)]

    def sources(self) -> dict[str, str]:
        """sha256 of every file that has a fault."""
        files = sorted({fault.file for fault in self.faults})
        return {file: hashlib.sha256((FOLDER / file).read_bytes()).hexdigest() for file in files}

    def build(self, flavour: str, folder: Path = FOLDER, cache: Path = BUILD) -> Build:
        """How the operator is built with a fault, or without one."""
        return Build(flavour, (self.operator,), folder, self.defines, cache, left_out=self.left_out)

    def wrong(self, build: Build, cases: Sequence[Case], seed: int, timeout: float) -> str:
        """The first thing that is wrong with the cases on a build; "" when they are right."""
        found = check(
            cases,
            build,
            seed=seed,
            compute_capability=self.compute_capability,
            timeout=timeout,
        )
        return next((f"{case}: {'; '.join(words)}" for case, words in found.items()), "")


def suite_names() -> list[str]:
    """All suites there are."""
    return sorted(path.stem for path in FAULTS_FOLDER.glob("*.py") if path.stem != "__init__")


def flavours(fault: Fault) -> tuple[str, ...]:
    """The builds to try, the one that is most likely to catch the fault first."""
    if SYNCHRONISATION.search(fault.old + fault.new):
        return ("tsan", "plain", "asan")
    return ("plain", "tsan", "asan")


@contextmanager
def planted(fault: Fault) -> Iterator[Path]:
    """A folder of sources like plugins/cuda with the fault in it; all other files are links to the real ones."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for part in ("include/slipway", "csrc", "emulator"):
            (folder / part).mkdir(parents=True)
            for file in (FOLDER / part).iterdir():
                (folder / part / file.name).symlink_to(file)
        target = folder / fault.file
        target.unlink()
        target.write_text(fault.applied((FOLDER / fault.file).read_text()))
        yield folder


def summary(words: str) -> str:
    """What a run said, on one short line."""
    for pattern in (
        r"(deadlock):",
        r"FAIL emulator: ([^(\n]*)",
        r"SUMMARY: \w+: ([\w-]+(?: [\w-]+)?)",
        r"runtime error: ([^\n]*)",
        r"code 4: ([^(\n]*)",
        r"(no end within)",
        r"ended with code (-?\d+)",
    ):
        if found := re.search(pattern, words):
            return found.group(1).strip()[:80]
    return words.splitlines()[0][:80]


@dataclass
class Trial:
    """A suite with what its unmutated build needs: the cases, and how long they may take."""

    suite: Suite
    cases: list[Case]
    timeouts: dict[str, float] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def prepare(self, flavour: str) -> None:
        """Builds without a fault and sees that every case is right. Raises SlipwayError when one is not."""
        with self.lock:
            if flavour in self.timeouts:
                return
            build = self.suite.build(flavour)
            build.runner()
            begun = time.perf_counter()
            if words := self.suite.wrong(build, self.cases, SEEDS[0], 600):
                raise SlipwayError(f"{self.suite.name} without a fault, {flavour}: {words}")
            self.timeouts[flavour] = 20 + 10 * (time.perf_counter() - begun)

    def judge(self, fault: Fault, tried: Sequence[str], seeds: Iterable[int] = SEEDS) -> Verdict:
        """Plants one fault and runs the cases on these flavours until something is wrong."""
        begun = time.perf_counter()
        with planted(fault) as folder:
            for flavour in tried:
                self.prepare(flavour)
                cache = folder / "cache"
                (cache / flavour).mkdir(parents=True)
                for compiled in (BUILD / flavour).glob("*.o"):
                    (cache / flavour / compiled.name).symlink_to(compiled)
                build = self.suite.build(flavour, folder, cache)
                build.runner()
                for seed in seeds:
                    if words := self.suite.wrong(build, self.cases, seed, self.timeouts[flavour]):
                        seconds = round(time.perf_counter() - begun, 1)
                        return Verdict(fault.name, flavour, seed, summary(words), seconds)
        return Verdict(fault.name, "", 0, "", round(time.perf_counter() - begun, 1))


def judge_all(suite: Suite, jobs: int, wanted: str = "") -> list[Verdict]:
    """Verdicts on the faults whose names hold `wanted`. Raises SlipwayError for one that does not compile."""
    trial = Trial(suite, suite.cases())
    faults = [fault for fault in suite.faults if wanted in fault.name]
    for fault in suite.faults:
        fault.applied((FOLDER / fault.file).read_text())
    trial.prepare("plain")
    with ThreadPoolExecutor(max_workers=jobs) as pool, progress(suite.name, len(faults)) as advance:

        def judged(fault: Fault) -> Verdict:
            try:
                verdict = trial.judge(fault, flavours(fault))
            except SlipwayError as error:
                raise SlipwayError(f"{suite.name}, fault {fault.name!r}: {error}") from error
            advance(f"{fault.name}: {verdict.flavour or 'SURVIVED'} {verdict.how}")
            return verdict

        return list(pool.map(judged, faults))


def recorded() -> dict[str, dict[str, object]]:
    """The content of results.json by suite; empty when there is none yet."""
    return json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}


def record(suite: Suite, sources: dict[str, str], verdicts: Sequence[Verdict]) -> None:
    """Writes a suite's verdicts to results.json, and the hashes of the sources they were found with."""
    with locked(BUILD / "results.lock"):
        results = recorded()
        results[suite.name] = {"sources": sources, "faults": [asdict(verdict) for verdict in verdicts]}
        RESULTS.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of `python -m tests.plugins.cuda.mutation`. Returns the exit code: 3 when too many faults survive."""
    parser = argparse.ArgumentParser(
        prog=COMMAND, description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("suites", nargs="*", help="names of files in faults/; all if none is named")
    parser.add_argument(
        "--fault", default="", help="only faults whose name holds this text; nothing is recorded"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args(arguments)
    rows = []
    survived = False
    for name in given.suites or suite_names():
        suite = Suite.load(name)
        begun, sources = time.perf_counter(), suite.sources()
        try:
            verdicts = judge_all(suite, given.jobs, given.fault)
        except (SlipwayError, ValueError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        if not given.fault:
            record(suite, sources, verdicts)
        caught = sum(verdict.caught for verdict in verdicts)
        survived = survived or caught < LEAST_CAUGHT * len(verdicts)
        rows.append([name, len(verdicts), caught, time.perf_counter() - begun])
        columns = ["fault", "caught by", "seed", "how", "seconds"]
        cells = [[v.name, v.flavour or "SURVIVED", v.seed or None, v.how, v.seconds] for v in verdicts]
        print_table(name, columns, cells)
    print_table("faults", ["suite", "planted", "caught", "seconds"], rows)
    return 3 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
