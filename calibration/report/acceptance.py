"""Whether an accuracy report is good enough: a list of limits, each on one figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from model_repo.runtime.errors import BadInput


class Limit(NamedTuple):
    """One figure's bound. `name` is the recipe's field, `figure` the report's."""

    name: str
    figure: str
    bound: float
    direction: str  # at most, at least

    def broken_by(self, value: float) -> bool:
        """Whether `value` is outside; NaN is."""
        return not (value <= self.bound if self.direction == "at most" else value >= self.bound)


def broken(report: Mapping[str, Any], limits: Sequence[Limit]) -> list[str]:
    """The limits that the report's figures break, in words.

    Raises BadInput for a limit on a figure that this kind of model does not have: a rule that nothing checks is none.
    """
    words = []
    for limit in limits:
        values = _values(report, limit.figure)
        if not values:
            raise BadInput(
                f"accept.{limit.name} limits {limit.figure!r}, which a report on this model does not have; it has "
                f"{', '.join(sorted(_numbers(report)))}"
            )
        words += [
            f"{limit.figure}{f' of {where}' if where else ''} is {value:.6g}, and accept.{limit.name} asks for "
            f"{limit.direction} {limit.bound:g}"
            for where, value in values.items()
            if limit.broken_by(value)
        ]
    return words


def _values(report: Mapping[str, Any], figure: str) -> dict[str, float]:
    """The figure as a whole (''), or of each output that has it."""
    if figure in report:
        return {"": float(report[figure])}
    outputs: Mapping[str, Mapping[str, float]] = report.get("outputs", {})
    return {name: float(found[figure]) for name, found in outputs.items() if figure in found}


def _numbers(report: Mapping[str, Any]) -> set[str]:
    own = {name for name, value in report.items() if isinstance(value, (int, float))}
    return own.union(*(set(found) for found in report.get("outputs", {}).values()))
