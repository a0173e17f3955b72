"""`slipway bench`: how fast the engine loop is, and which precision is the fastest within an allowed loss."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click


@click.command("bench")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--threads", type=click.IntRange(min=0), help="0: all cores  [default: as built]")
@click.option("--choose", is_flag=True, help="measure the precisions and write the best into DIR's recipe")
@click.option(
    "--max-loss",
    type=click.FloatRange(min=0),
    help="with --choose: percent that perplexity may rise  [default: what the recipe accepts, or 1]",
)
@click.option(
    "--workload",
    type=click.Choice(["streams", "one", "prefill"]),
    default="streams",
    show_default=True,
    help="with --choose: what is to be fast, many streams, one stream or prompts",
)
@click.option("--json", "as_json", is_flag=True, help="print one JSON object instead of a table")
def command(
    folder: Path, threads: int | None, choose: bool, max_loss: float | None, workload: str, as_json: bool
) -> None:
    """Measure the engine built in DIR, without a server: prefill, and decode with 1 and 16 streams.

    With --choose: the CPU's precisions instead, what each loses of perplexity beside float32, and the fastest within
    the allowed loss, which goes into DIR/recipe.yaml. Comparisons with other programs are in the folder bench of
    the project.
    """
    if choose:
        _choose(folder, threads, max_loss, workload, as_json)
        return
    from rich.table import Table

    from model_repo.runtime.errors import BadInput
    from model_repo.runtime.manifest import Manifest
    from pipeline.bench import bench
    from pipeline.workspace import MANIFESTS

    from .screen import add_row, show

    spec = Manifest.read(folder / MANIFESTS["compile"]).engine
    if spec is None:
        raise BadInput(f"{folder / MANIFESTS['compile']} describes no engine; run slipway compile {folder}")
    rates = bench(folder, spec, threads)
    if as_json:
        print(json.dumps({"model": spec.name, "rates": [asdict(rate) for rate in rates]}))
        return
    table = Table("measured", title=f"{spec.name}, {spec.precision}, {spec.target}", title_justify="left")
    table.add_column("rate", justify="right")
    table.add_column("time outside the engine", justify="right")
    for rate in rates:
        share = "" if rate.loop_share is None else f"{rate.loop_share:.1%}"
        add_row(table, rate.what, f"{rate.value:.1f} {rate.unit}", share)
    show(table)


def _choose(folder: Path, threads: int | None, max_loss: float | None, workload: str, as_json: bool) -> None:
    from rich.table import Table

    from pipeline.choose import choose
    from pipeline.workspace import RECIPE

    from .screen import ScreenProgress, add_row, show

    with ScreenProgress() as progress:
        progress.started("choose")
        choice, measured = choose(
            folder,
            None if max_loss is None else max_loss / 100,
            workload,
            threads=threads,
            told=progress.advanced,
        )
    if as_json:
        rows = [
            {
                "precision": item.quantize.precision,
                "loss": item.loss,
                "rates": [asdict(rate) for rate in item.rates],
            }
            for item in measured
        ]
        print(json.dumps({"chosen": choice.quantize.precision, "workload": workload, "measured": rows}))
        return
    table = Table("precision", title=f"chosen: {choice.quantize.precision}", title_justify="left")
    for heading in ("perplexity", *(rate.what for rate in measured[0].rates)):
        table.add_column(heading, justify="right")
    for item in measured:
        rates = [f"{rate.value:.1f} {rate.unit}" for rate in item.rates]
        add_row(table, item.quantize.precision, f"{item.loss:+.2%}", *rates)
    show(table)
    click.echo(
        f"{folder / RECIPE} has precision {choice.quantize.precision}; `slipway build --recipe {folder / RECIPE} "
        f"--output {folder}` builds it"
    )
