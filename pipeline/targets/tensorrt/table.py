"""'What the builder made of it': one table of a build's record, for a terminal and as a picture."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_WIDTH = 110


def made_table(record: Mapping[str, Any]) -> Table:
    """One row an operator and profile: its nodes, kernels that work on them, nodes within one kernel, nodes with a
    kernel of their own kind; kernels of each profile, reformats and float32 islands below."""
    made = record["made"]
    chips = ", ".join(record["compute_capabilities"]) or "any that it knows"
    islands = len(made["float_islands"])
    table = Table(
        "operator",
        "profile",
        title=f"{record['target']} {record['version']}, compute capabilities: {chips}",
        caption=f"{len(made['reformats'])} layers only reformat; {islands} make float32 that no node asks for; built "
        f"in {record['build_seconds']:.1f} s",
    )
    for column in ("nodes", "kernels", "in one kernel", "with a kernel of its own"):
        table.add_column(column, justify="right")
    for fate in made["operators"]:
        counts = (fate["nodes"], fate["kernels"], fate["whole"], fate["own"])
        table.add_row(*(Text(str(cell)) for cell in (fate["operator"], fate["profile"], *counts)))
    table.add_section()
    for profile, kernels in made["kernels"].items():
        table.add_row(Text("all"), Text(profile), "", Text(str(kernels)), "", "")
    return table


def shapes_table(record: Mapping[str, Any]) -> Table:
    """The engine's inputs with their shapes in each profile, and its outputs; -1: any size."""
    profiles = record["profiles"]
    table = Table("", "name", "type", "shape", *(f"{name}: least, usual, most" for name in profiles))
    for end in record["inputs"]:
        ranges = [", ".join(str(shape) for shape in shapes[end["name"]]) for shapes in profiles.values()]
        table.add_row(
            *(Text(cell) for cell in ("input", end["name"], end["dtype"], str(end["shape"]), *ranges))
        )
    table.add_section()
    for end in record["outputs"]:
        table.add_row(*(Text(cell) for cell in ("output", end["name"], end["dtype"], str(end["shape"]))))
    return table


def options_table(record: Mapping[str, Any]) -> Table:
    """Builder options that are not the defaults, the GPU that it was built beside, and a hash of the kernels chosen."""
    gpu = record.get("gpu")
    rows = {
        "built beside": f"{gpu['name']}, compute capability {gpu['capability']}" if gpu else "no GPU",
        **({"kernels chosen": record["tactics"]} if record.get("tactics") else {}),
        **record.get("builder", {}),
    }
    table = Table("builder", "")
    for name, value in rows.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        table.add_row(Text(name.replace("_", " ")), Text(text))
    for warning in record["warnings"]:
        table.add_row(Text("warning"), Text(warning))
    return table


def picture(record: Mapping[str, Any]) -> str:
    """`made_table` as SVG."""
    console = Console(record=True, width=_WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(made_table(record))
    return console.export_svg(title="what the builder made of it")
