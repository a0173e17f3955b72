"""`slipway check`: manifests, hashes, configs, parity."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("check")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
def command(folder: Path) -> None:
    """Verify the build in DIR: manifests, every file's sha256, configs parsed back, parity within the recipe.

    Exit code 2 when something is damaged or stale, 3 when only parity is outside its tolerance.
    """
    from rich.table import Table

    from pipeline.check import check, verdict

    from .screen import add_row, show

    findings = check(folder)
    table = Table("check", "result")
    for finding in findings:
        add_row(table, finding.what, finding.problem or "ok")
    show(table)
    verdict(findings)
