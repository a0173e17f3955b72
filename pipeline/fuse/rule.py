"""What a fusion rule is, and what it reports: how often it matched, and what it left alone and why."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple

import onnx_ir as ir
from onnx_ir.passes import common as passes


class NearMiss(NamedTuple):
    """Something that looked like the pattern and was left alone."""

    node: str  # name of the node that the rule looked at
    reason: str  # why it was not rewritten


@dataclass(frozen=True)
class Matches:
    """What one pass of a rule over a graph did."""

    count: int
    near_misses: tuple[NearMiss, ...] = ()


@dataclass(frozen=True)
class RuleReport:
    """What a rule did to a model. True when it changed something."""

    rule: str
    matched: int
    nodes_before: int
    nodes_after: int
    near_misses: tuple[NearMiss, ...]

    def __bool__(self) -> bool:
        return self.matched > 0

    def __str__(self) -> str:
        missed = f", {len(self.near_misses)} left alone" if self.near_misses else ""
        return f"{self.rule}: {self.matched} matched, {self.nodes_before} -> {self.nodes_after} nodes{missed}"


@dataclass(frozen=True)
class FusionReport:
    """The reports of all rules, in the order in which they ran. True when the model changed."""

    rules: tuple[RuleReport, ...]
    nodes_before: int
    nodes_after: int
    operators: Mapping[str, int]  # nodes of each operator afterwards

    def __bool__(self) -> bool:
        return any(self.rules)

    def __str__(self) -> str:
        return f"{self.nodes_before} -> {self.nodes_after} nodes; " + "; ".join(map(str, self.rules))

    def rule(self, name: str) -> RuleReport:
        """The report of one rule. Raises KeyError when it did not run."""
        for report in self.rules:
            if report.rule == name:
                return report
        raise KeyError(f"rule {name!r} did not run; these did: {[report.rule for report in self.rules]}")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, for the manifest."""
        plain = asdict(self)
        plain["rules"] = [
            {**asdict(report), "near_misses": [miss._asdict() for miss in report.near_misses]}
            for report in self.rules
        ]
        plain["operators"] = dict(self.operators)
        return plain


class Rule(ABC):
    """One rewriting of the graph into fewer nodes with the same numbers."""

    name: ClassVar[str]

    @abstractmethod
    def rewrite(self, model: ir.Model) -> Matches:
        """Rewrites every match in place. Nodes that nobody reads any more may be left behind."""

    def apply(self, model: ir.Model) -> RuleReport:
        """`rewrite`, then removes what nobody reads any more."""
        before = len(model.graph)
        matches = self.rewrite(model)
        passes.RemoveUnusedNodesPass()(model)
        model.graph.sort()
        return RuleReport(self.name, matches.count, before, len(model.graph), matches.near_misses)
