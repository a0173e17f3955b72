"""What is known of each kernel, and what each operator takes: `python -m plugins.cuda.ledger`.

Writes `OPERATORS.md` beside this file from the library's own descriptions, and two tables of plugins/README.md: the
operators, and the ledger of their forms ("correct on: chip, date, commit", "correct under emulation", "never run").
What was seen on GPUs comes from the files in plugins/bench/results/, and from nowhere else.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from model_repo.runtime.errors import SlipwayError

from . import results
from .emulated import Build
from .library import Description, Library
from .results import Results
from .units import FOLDER

README = FOLDER.parent / "README.md"
OPERATORS_FILE = FOLDER / "OPERATORS.md"
ANY_CHIP = 0
LATEST_CHIP = 10**6


@dataclass(frozen=True)
class Form:
    """One way in which an operator's kernels are written.

    least, most: compute capabilities that choose it (89 for 8.9), both included. cases: a pattern of the names of cases
    that run it. emulated_by: the tests that run it under emulation, from the root of the project; "" when none does.
    """

    operator: str
    name: str
    emulated_by: str = ""
    least: int = ANY_CHIP
    most: int = LATEST_CHIP
    cases: str = ""


SINGLE_FORM = "one form, every chip"
_FLASH = "tests/plugins/cuda/test_flash_attention.py"
_FLASH_SM90 = "tests/plugins/cuda/test_flash_attention_sm90.py"
_PAGED = "tests/plugins/cuda/test_paged_attention.py"
_GEMM = "tests/plugins/cuda/test_weight_only_gemm.py"
_ACTIVATIONS = "tests/plugins/cuda/test_activations.py"
_NORMS = "tests/plugins/cuda/test_norms.py"
_OF_16_BITS = "^(?!.*pool=(?:int8|float8)).*"
FORMS = (
    Form("activation", SINGLE_FORM, _ACTIVATIONS),
    Form("flash_attention", "16 bit, mma.sync, every chip", _FLASH, cases="^(?!.*float8).*form=1"),
    Form("flash_attention", "E4M3, mma.sync, from 8.9", _FLASH, 89, cases="float8.*form=1"),
    Form("flash_attention", "16 bit, TMA and WGMMA, 9.0", _FLASH_SM90, 90, 90, "^(?!.*(?:float8|form=1))"),
    Form("flash_attention", "E4M3, TMA and WGMMA, 9.0", _FLASH_SM90, 90, 90, "^(?!.*form=1).*float8"),
    Form("gated_activation", SINGLE_FORM, _ACTIVATIONS),
    Form("layer_norm", SINGLE_FORM, _NORMS),
    Form("paged_attention", "16-bit pools, every chip", _PAGED, cases=_OF_16_BITS),
    Form("paged_attention", "int8 pools, every chip", _PAGED, cases="pool=int8"),
    Form("paged_attention", "E4M3 pools, every chip", _PAGED, cases="pool=float8"),
    Form("paged_attention", "shared prefixes (cascade), every chip", _PAGED, cases="shared="),
    Form("rms_norm", SINGLE_FORM, _NORMS),
    Form("token_counts", SINGLE_FORM, "tests/plugins/cuda/test_sampling.py"),
    Form("weight_only_gemm", "int4, every chip", _GEMM, cases="^int4"),
    Form("weight_only_gemm", "int8, every chip", _GEMM, cases="^int8"),
    Form("weight_only_gemm", "E4M3, every chip", _GEMM, cases="^e4m3"),
)
"""What forms there are; an operator that is not listed has one, emulated by the test of its name."""


def forms(operators: Sequence[str]) -> list[Form]:
    """All forms of these operators."""
    listed = []
    for operator in operators:
        own = [form for form in FORMS if form.operator == operator]
        listed += own or [Form(operator, SINGLE_FORM, _test_of(operator))]
    return listed


def _test_of(operator: str) -> str:
    """The test of an operator's name, from the root of the project; "" when there is none."""
    root = FOLDER.parent.parent
    test = root / "tests" / "plugins" / "cuda" / f"test_{operator}.py"
    return test.relative_to(root).as_posix() if test.is_file() else ""


def state(form: Form, seen: Sequence[Results]) -> str:
    """What is known of a form, in the ledger's words: the latest run on each chip, else emulation, else nothing."""
    chips: dict[str, str] = {}
    for run in seen:
        if not form.least <= run.gpu.compute_capability <= form.most:
            continue
        mine = [
            check
            for check in run.checks
            if check["operator"] == form.operator
            and re.search(form.cases, check["case"])
            and (check["errors"] or check["problems"])
        ]
        bad = [s for s in run.sanitizer if s.operator == form.operator and s.verdict == "errors"]
        if not mine:
            continue
        wrong = sum(bool(check["problems"]) for check in mine)
        where = f"{run.gpu.name}, {run.date[:10]}, {run.commit}"
        chips[run.gpu.name] = (
            f"WRONG on: {where} ({wrong} of {len(mine)} cases)"
            if wrong or bad
            else f"correct on: {where} ({len(mine)} cases)"
        )
    if chips:
        return "; ".join(chips.values())
    return (
        f"correct under emulation (`{form.emulated_by}`); never run on a GPU"
        if form.emulated_by
        else "never run"
    )


def ledger_table(operators: Sequence[str], seen: Sequence[Results]) -> str:
    """The ledger, a row a form."""
    lines = ["| operator | form | state |", "| --- | --- | --- |"]
    lines += [f"| `{f.operator}` | {f.name} | {state(f, seen)} |" for f in forms(operators)]
    return "\n".join(lines)


def operators_table(descriptions: Sequence[Description]) -> str:
    """A row an operator: what it computes, and of which types."""
    lines = ["| operator | what it computes | types |", "| --- | --- | --- |"]
    for d in descriptions:
        types = "; ".join(f"{name}: {', '.join(kinds)}" for name, kinds in d.types.items())
        lines.append(f"| `{d.name}` | {_cell(d.meaning)} | {types} |")
    return "\n".join(lines)


def operators_file(descriptions: Sequence[Description]) -> str:
    """OPERATORS.md: every tensor and attribute."""
    lines = [
        "# Tensors and attributes of the CUDA operators",
        "",
        "Written by `python -m plugins.cuda.ledger` from what the library says of itself (`slipway_describe`).",
        "Tensors are contiguous unless they are marked strided: then the strides of all axes but the last are free. "
        "A symbol has one",
        "value wherever it occurs.",
    ]
    for d in descriptions:
        lines += ["", f"## `{d.name}`", "", d.meaning + ".", ""]
        lines += ["| tensor | role | type | shape | meaning |", "| --- | --- | --- | --- | --- |"]
        for t in d.tensors:
            role = ("optional " if t.optional else "") + t.role + (", strided" if t.strided else "")
            shape = _cell(", ".join(t.shape))
            lines.append(f"| `{t.name}` | {role} | {t.type} | [{shape}] | {_cell(t.meaning)} |")
        if d.attributes:
            lines += ["", "| attribute | default | allowed | meaning |", "| --- | --- | --- | --- |"]
            for a in d.attributes:
                kind = "whole, " if a.integer else ""
                allowed = f"{kind}{a.min:.15g} to {a.max:.15g}"
                lines.append(f"| `{a.name}` | {a.default:.15g} | {allowed} | {_cell(a.meaning)} |")
        if d.types:
            types = [f"{name} is {' or '.join(kinds)}" for name, kinds in d.types.items()]
            lines += ["", "; ".join(types) + "."]
        lines += ["", *(f"* {limit}" for limit in d.limits)] if d.limits else []
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def with_parts(text: str, parts: dict[str, str]) -> str:
    """A document with what lies between `<!-- name -->` and `<!-- end of name -->` replaced."""
    for name, part in parts.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        if len(pattern.findall(text)) != 1:
            raise ValueError(f"the document must have one part <!-- {name} --> ... <!-- end of {name} -->")
        text = pattern.sub(lambda match, part=part: f"{match[1]}\n{part}\n\n{match[2]}", text)  # type: ignore[misc]
    return text


def documents(library: Library, seen: Sequence[Results]) -> dict[Path, str]:
    """The documents as they must be, by path."""
    operators = library.info["operators"]
    descriptions = [library.describe(operator) for operator in operators]
    parts = {"operators": operators_table(descriptions), "ledger": ledger_table(operators, seen)}
    return {
        README: with_parts(README.read_text(encoding="utf-8"), parts),
        OPERATORS_FILE: operators_file(descriptions),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of `python -m plugins.cuda.ledger`. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m plugins.cuda.ledger", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--library", type=Path, help="what to ask; default: an emulated one, compiled if needed"
    )
    given = parser.parse_args(arguments)
    try:
        library = Library(given.library or Build().library())
        for path, text in documents(library, results.read_all()).items():
            path.write_text(text, encoding="utf-8")
            print(path)
    except SlipwayError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
