"""`slipway doctor`: what works here."""

from __future__ import annotations

import click


@click.command("doctor")
def command() -> None:
    """Show what works on this machine, and for what does not, why and what to install.

    Exit code 0: it is a report.
    """
    from rich.table import Table

    from pipeline.doctor import diagnose

    from .screen import add_row, show

    table = Table("what", "state", "found", "to do")
    for row in diagnose():
        add_row(table, row.what, "works" if row.works else "missing", row.found, row.remedy)
    show(table)
