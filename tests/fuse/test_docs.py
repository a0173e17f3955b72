"""docs/fusion.md names every rule, and its table is that of the committed measurement."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from bench.fusion import BEGIN, END, write_table
from pipeline.fuse import rule_names

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/fusion.md"
RESULTS = ROOT / "bench/results/fusion.json"


def test_every_rule_is_described() -> None:
    table = PAGE.read_text(encoding="utf-8").partition("| rule | what becomes what |")[2].partition("\n\n")[0]
    named = re.findall(
        r"`([a-z_]+)`", "\n".join(line.split("|")[1] for line in table.splitlines() if "`" in line)
    )
    assert sorted(named) == sorted(rule_names())


def test_the_table_is_that_of_the_measurement(tmp_path: Path) -> None:
    page = tmp_path / "fusion.md"
    shutil.copyfile(PAGE, page)
    write_table(json.loads(RESULTS.read_text(encoding="utf-8"))["results"], page)
    assert page.read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8")


def test_no_optimizer_leaves_fewer_kernels() -> None:
    results = json.loads(RESULTS.read_text(encoding="utf-8"))["results"]
    assert len(results) == 10
    for name, result in results.items():
        assert result["kernels"]["slipway"] == min(result["kernels"].values()), name


def test_a_page_without_marks_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(END)):
        write_table({}, page)
