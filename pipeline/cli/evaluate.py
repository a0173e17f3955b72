"""`slipway evaluate`: what an engine's numbers cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.table import Table


@click.command("evaluate")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    help="folder of another build, whose engine is the reference  [default: the float32 graph of DIR]",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help=".txt of held-out documents, or .npz for named tensors  [default: the demo's held-out text]",
)
@click.option(
    "--tokens", type=click.IntRange(min=100), help="tokens of text scored at most  [default: 60000]"
)
@click.option("--threads", type=click.IntRange(min=0), help="0: all cores  [default: as built]")
@click.option("--picture", type=click.Path(path_type=Path), help="draw the report to this .svg")
@click.option(
    "--report", "report_file", type=click.Path(path_type=Path), help="write all figures to this .json"
)
@click.option("--json", "as_json", is_flag=True, help="print one JSON object instead of tables")
def command(
    folder: Path,
    against: Path | None,
    data: Path | None,
    tokens: int | None,
    threads: int | None,
    picture: Path | None,
    report_file: Path | None,
    as_json: bool,
) -> None:
    """Accuracy of the engine in DIR on data that nothing was calibrated on, beside float32.

    Decoders: perplexity, KL, the share of likeliest tokens and of greedy continuations that stay the same. Encoders:
    cosine, and whether the nearest sentence stays the same. Named tensors: cosine, and the same choice of class.
    Exit code 3 when the acceptance rule in DIR's recipe is broken.
    """
    from calibration.report.picture import write_picture
    from pipeline.evaluate import TOKENS, Given, dump, evaluate
    from pipeline.recipe import Recipe
    from pipeline.steps.evaluate import judge
    from pipeline.workspace import RECIPE

    from .screen import ScreenProgress, show

    with ScreenProgress() as progress:
        progress.started(f"evaluating {folder}")
        report = evaluate(
            folder,
            against,
            Given(data, tokens or TOKENS),
            threads=threads,
            advanced=progress.advanced,
        )
    if report_file is not None:
        report_file.write_text(dump(report), encoding="utf-8")
    if picture is not None:
        write_picture(picture, report, f"Accuracy of {report['candidate']['name']}")
    if as_json:
        print(dump(report), end="")
    else:
        show(*_tables(report))
    if report["reference"] is not None:
        judge(report, Recipe.load(folder / RECIPE).accept)


def _tables(report: Mapping[str, Any]) -> list[Table]:
    from rich.table import Table

    from pipeline.disk import in_words

    from .screen import add_row

    candidate, reference = report["candidate"], report["reference"]
    title = f"{candidate['name']}" + (f" beside {reference['name']}" if reference else "")
    table = Table("figure", title=title, title_justify="left")
    for side in ("reference", "engine", "change"):
        table.add_column(side, justify="right")
    if "perplexity" in report:
        change = f"{report['perplexity_increase']:+.2%}" if reference else ""
        before = f"{report['reference_perplexity']:.4f}" if reference else ""
        add_row(
            table, f"perplexity of {report['tokens']:,} tokens", before, f"{report['perplexity']:.4f}", change
        )
    for name, words in _WORDS.items():
        if name in report:
            add_row(table, words, "", _number(report[name]), "")
    for output, figures in report.get("outputs", {}).items():
        for name, value in figures.items():
            add_row(table, f"{output}: {name.replace('_', ' ')}", "", _number(value), "")
    if "texts" in report and reference is None:
        add_row(table, "texts", "", str(report["texts"]), "")
    for name, words in (("bytes", "bytes"), ("tokens_per_second", "tokens/s in these steps")):
        sides = [
            "" if side is None else in_words(side[name]) if name == "bytes" else f"{side[name]:,.0f}"
            for side in (reference, candidate)
        ]
        change = f"{candidate[name] / reference[name]:.2f}x" if reference and reference[name] else ""
        add_row(table, words, *sides, change)
    tables = [table]
    if report.get("worst"):
        worst = Table("tensor", "operator", "module", title="layers that lose most", title_justify="left")
        worst.add_column("error", justify="right")
        for layer in report["worst"]:
            add_row(worst, layer["tensor"], layer["operator"], layer["module"], _number(layer["error"]))
        tables.append(worst)
    return tables


_WORDS = {
    "kl": "KL, nats",
    "top1": "same likeliest choice",
    "greedy_tokens": "greedy tokens before the first difference",
    "greedy_whole": "greedy continuations wholly the same",
    "mean_cosine": "mean cosine",
    "min_cosine": "least cosine",
    "retrieval": "same nearest sentence",
    "order": "rank correlation of similarities",
    "max_difference": "largest difference of a logit",
}


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"
