"""Every operator that our graphs hold gives onnx's own vectors, or is refused for a listed reason."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from .node_cases import DEVIATIONS, EMITTED, OPSET, Outcome, cases, outcome

TABLE = Path(__file__).parents[2] / "docs" / "onnx_nodes.md"


@pytest.mark.parametrize("operator", EMITTED)
def test_an_operator_gives_onnx_vectors(operator: str) -> None:
    outcomes = [outcome(case) for case in cases()[operator]]
    assert outcomes, f"onnx has no node test of {operator}"
    assert row(operator, outcomes) in TABLE.read_text(encoding="utf-8").splitlines(), (
        "the table is not up to date: python -m tests.conformance.test_onnx_nodes"
    )


def row(operator: str, outcomes: list[Outcome]) -> str:
    """A line of the table."""
    results = Counter(one.result for one in outcomes)
    reasons = Counter(one.reason for one in outcomes if one.reason)
    said = "; ".join(f"{count}: {reason}" for reason, count in sorted(reasons.items()))
    return (
        f"| {operator} | {len(outcomes)} | {results['equal']} | {results['refused'] or ''} "
        f"| {results['different'] or ''} | {said} |"
    )


def table() -> str:
    """The whole document."""
    every = {operator: [outcome(case) for case in cases()[operator]] for operator in EMITTED}
    total = Counter(one.result for outcomes in every.values() for one in outcomes)
    lines = [
        "# Standard operators, by onnx's own node tests",
        "",
        "Written by `python -m tests.conformance.test_onnx_nodes`; `make test` runs every case and fails when a row",
        "is not as here. Each node test (a graph of one operator with inputs and outputs, made by the onnx project)",
        "goes through fusion, the lowering to ONNX Runtime's CPU and the compiled engine; shapes, types and numbers",
        "must be those that onnx gives, within the tolerance that onnx sets (float16: two steps at least). Cases of",
        f"an opset that is not released run as opset {OPSET} where onnx's checker takes them so. Of "
        f"{sum(total.values())} cases {total['equal']}",
        f"are equal, {total['refused']} are refused and {total['different']} differ; all for the reasons given.",
        "",
        "| operator | cases | equal | refused | different | why |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
        *(row(operator, outcomes) for operator, outcomes in every.items()),
        "",
    ]
    return "\n".join(lines)


def test_no_deviation_is_listed_in_vain() -> None:
    names = {case.name for operator in EMITTED for case in cases()[operator]}
    assert set(DEVIATIONS) <= names


if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")
    print(f"{TABLE}: {len(EMITTED)} operators")
