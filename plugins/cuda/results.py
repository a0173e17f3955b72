"""What a run on a GPU left behind, as one JSON file: `plugins/bench/results/<date>-<gpu>-<commit>.json`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from model_repo.runtime.errors import BadInput

SCHEMA = 1
FOLDER = Path(__file__).parent.parent / "bench" / "results"


@dataclass(frozen=True)
class Gpu:
    """The chip that everything in a file was seen on. compute_capability: 90 for 9.0."""

    name: str
    compute_capability: int
    sm_count: int
    l2_bytes: int
    memory_bytes: int
    driver: str


@dataclass(frozen=True)
class SanitizerReport:
    """compute-sanitizer's verdict on an operator: clean, errors, or not run; `words`: what it said."""

    operator: str
    tool: str
    verdict: str
    words: str = ""


@dataclass(frozen=True)
class GoalResult:
    """What a goal speaks of, in `unit`: what it must at least (or at most) be, and what it is.

    achieved and reached are None where what it compares with was not measured.
    """

    unit: str
    bound: float
    at_most: bool
    achieved: float | None
    reached: bool | None


@dataclass(frozen=True)
class Measurement:
    """One benchmark case. Times are medians in microseconds; spread is half the distance of the quartiles over it.

    replayed: in a CUDA graph, without the host's time. baselines: microseconds by name, or why there is none.
    """

    operator: str
    case: str
    microseconds: float
    spread: float
    replayed: bool
    bytes_moved: int
    operations: int
    goals: tuple[GoalResult, ...] = ()
    baselines: Mapping[str, float | str] = field(default_factory=dict)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Measurement:
        """Reads what `dataclasses.asdict` gave."""
        return cls(**{**record, "goals": tuple(GoalResult(**goal) for goal in record["goals"])})


@dataclass(frozen=True)
class EngineReport:
    """An engine that served requests through the runtime: right, wrong, or not run; `words`: what was seen."""

    engine: str
    verdict: str
    words: str = ""


@dataclass(frozen=True)
class LoopMeasurement:
    """The engine loop with so many streams. tokens_per_second: generated ones, prompts included in the time.

    step_microseconds: of a step after the last prompt, by the clock; host_microseconds: of that, what the host did not
    wait for the device. peer: transformers' tokens a second, or why there are none.
    """

    engine: str
    streams: int
    tokens_per_second: float
    step_microseconds: float
    host_microseconds: float | None
    peer: float | str


@dataclass(frozen=True)
class Results:
    """A whole run. `dropped` lists what was left out and why; `verdict`: see the function of that name."""

    date: str
    commit: str
    gpu: Gpu
    versions: Mapping[str, str]
    build: Mapping[str, Any]
    operators: tuple[str, ...]
    checks: tuple[Mapping[str, Any], ...]
    sanitizer: tuple[SanitizerReport, ...]
    ceilings: Mapping[str, float]
    measurements: tuple[Measurement, ...]
    dropped: tuple[str, ...]
    seconds: Mapping[str, float]
    verdict: str
    engines: tuple[EngineReport, ...] = ()
    loops: tuple[LoopMeasurement, ...] = ()
    schema: int = SCHEMA

    @property
    def file_name(self) -> str:
        """<date>-<gpu>-<commit>.json in lower case, without spaces."""
        gpu = re.sub(r"[^a-z0-9]+", "-", self.gpu.name.lower()).strip("-")
        return f"{self.date[:10]}-{gpu}-{self.commit}.json"

    def right_operators(self) -> set[str]:
        """Operators with at least one case, nothing wrong in any, and no sanitizer error."""
        wrong = {check["operator"] for check in self.checks if check["problems"]}
        wrong |= {report.operator for report in self.sanitizer if report.verdict == "errors"}
        checked = {check["operator"] for check in self.checks if check["errors"]}
        return checked - wrong

    def write(self, folder: Path = FOLDER) -> Path:
        """Writes the file and returns its path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self.file_name
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        return path


def read(path: Path) -> Results:
    """Raises BadInput when the file is not of this schema."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA:
            raise BadInput(f"{path} has schema {data['schema']}; this version reads schema {SCHEMA}")
        return Results(
            **{
                **data,
                "gpu": Gpu(**data["gpu"]),
                "operators": tuple(data["operators"]),
                "checks": tuple(data["checks"]),
                "sanitizer": tuple(SanitizerReport(**entry) for entry in data["sanitizer"]),
                "measurements": tuple(map(Measurement.from_record, data["measurements"])),
                "dropped": tuple(data["dropped"]),
                "engines": tuple(EngineReport(**entry) for entry in data["engines"]),
                "loops": tuple(LoopMeasurement(**entry) for entry in data["loops"]),
            }
        )
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path} is not a result of `make gpu-check`: {error}") from error


def read_all(folder: Path = FOLDER) -> list[Results]:
    """All runs in a folder, oldest first."""
    return sorted((read(path) for path in folder.glob("*.json")), key=lambda results: results.date)


def verdict(
    checks: Iterable[Mapping[str, Any]],
    sanitizer: Sequence[SanitizerReport],
    engines: Sequence[EngineReport] = (),
    *,
    complete: bool,
) -> str:
    """wrong when a case has a problem, a sanitizer found an error or an engine is wrong; else right if all operators
    ran, or incomplete."""
    if any(check["problems"] for check in checks) or any(report.verdict == "errors" for report in sanitizer):
        return "wrong"
    if any(report.verdict == "wrong" for report in engines):
        return "wrong"
    return "right" if complete else "incomplete"
