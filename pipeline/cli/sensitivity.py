"""`slipway sensitivity`: what each layer's precision costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.table import Table

    from pipeline.sensitivity import Findings


@click.command("sensitivity")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--budget-bytes", type=int, help="bytes of all linear layers together")
@click.option("--budget-share", type=float, help="their bytes as a share of float32's, such as 0.2")
@click.option("--max-loss", type=float, help="sum of the layers' losses instead of a budget of bytes")
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    help="what a layer may be; may be repeated  [default: fp32, int8-weights, int4]",
)
@click.option("--block", type=int, default=32, show_default=True, help="weights that share a scale")
@click.option(
    "--data", type=click.Path(path_type=Path), help="held-out text of a decoder  [default: the demo's]"
)
@click.option("--tokens", type=click.IntRange(min=2), default=4096, show_default=True, help="tokens of it")
@click.option(
    "--measurements",
    type=click.IntRange(min=0),
    help="whole allocations measured at most to refine the choice under a budget of bytes; 0: take it as it is  "
    "[default: 2 for each precision of each layer]",
)
@click.option(
    "--layers", type=click.Path(path_type=Path), help="write the chosen precisions for --precision mixed"
)
@click.option(
    "--picture", "picture_file", type=click.Path(path_type=Path), help="write loss over bytes to this .svg"
)
@click.option("--report", type=click.Path(path_type=Path), help="write all figures to this .json")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object instead of tables")
def command(
    folder: Path,
    budget_bytes: int | None,
    budget_share: float | None,
    max_loss: float | None,
    precisions: tuple[str, ...],
    block: int,
    data: Path | None,
    tokens: int,
    measurements: int | None,
    layers: Path | None,
    picture_file: Path | None,
    report: Path | None,
    as_json: bool,
) -> None:
    """Quantize one layer of the build in DIR at a time, measure what it costs, and choose precisions under a budget.

    The loss of a decoder is the KL divergence of its next-token distribution from float32's, on held-out text.
    """
    from calibration.pareto_picture import picture
    from pipeline.sensitivity import PRECISIONS, Budget, find, write_layers
    from pipeline.steps.context import BuildContext
    from pipeline.workspace import Workspace

    from .options import folder_recipe
    from .screen import ScreenProgress, show

    budget = Budget(budget_bytes, budget_share, max_loss)
    context = BuildContext(folder_recipe(folder, None, {}), Workspace(folder), exports=False)
    with ScreenProgress() as progress:
        progress.started("sensitivity")
        found = find(
            context,
            budget,
            precisions=precisions or PRECISIONS,
            block=block,
            data=data,
            tokens=tokens,
            measurements=measurements,
            advanced=progress.advanced,
        )
    plain = json.dumps(found.to_dict(), indent=2)
    if report is not None:
        report.write_text(plain + "\n", encoding="utf-8")
    if layers is not None:
        write_layers(found, layers)
    if picture_file is not None:
        frontier = list(zip(found.frontier.num_bytes.tolist(), found.frontier.losses.tolist(), strict=True))
        picture_file.write_text(
            picture(frontier, found.points(), f"{folder}: loss over bytes"), encoding="utf-8"
        )
    if as_json:
        print(plain)
    else:
        show(_layers(found), _wholes(found))


def _layers(found: Findings) -> Table:
    """One line a layer."""
    from rich.table import Table

    from .screen import add_row

    names = [option.precision for option in next(iter(found.options.values()))]
    table = Table(
        "layer", title=f"loss of one layer by itself, on {found.tokens} tokens", title_justify="left"
    )
    for name in names:
        table.add_column(name, justify="right")
    table.add_column("chosen")
    for layer, options in found.options.items():
        losses = [f"{option.loss:.2e}" for option in options]
        add_row(table, layer, *losses, found.chosen.precisions[layer])
    return table


def _wholes(found: Findings) -> Table:
    """Uniform precisions and the chosen one."""
    from rich.table import Table

    from .screen import add_row

    table = Table("all layers", title="the whole model", title_justify="left")
    table.add_column("bytes", justify="right")
    table.add_column("loss", justify="right")
    table.add_column("expected", justify="right")
    for name, (size, loss) in found.uniform.items():
        add_row(table, name, f"{size:,}", f"{loss:.3e}", "")
    chosen = found.chosen
    if found.unrefined is not None:
        add_row(table, "chosen by sums alone", "", f"{found.unrefined:.3e}", "")
    add_row(table, "chosen", f"{chosen.num_bytes:,}", f"{found.measured:.3e}", f"{chosen.loss:.3e}")
    return table
