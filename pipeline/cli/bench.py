"""`slipway bench`: how fast the engine loop is."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click


@click.command("bench")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--threads", type=click.IntRange(min=0), help="0: all cores  [default: as built]")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object instead of a table")
def command(folder: Path, threads: int | None, as_json: bool) -> None:
    """Measure the engine built in DIR, without a server: prefill, and decode with 1 and 16 streams.

    Comparisons with other programs are in the folder bench of the project.
    """
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
