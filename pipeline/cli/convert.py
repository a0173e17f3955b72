"""`slipway convert`: a float32 graph in 16 bit."""

from __future__ import annotations

import json
import math
from pathlib import Path

import click


@click.command("convert")
@click.argument("source", metavar="FILE.onnx", type=click.Path(path_type=Path))
@click.option("--to", "precision", required=True, type=click.Choice(["fp16", "bf16"]), help="the 16-bit type")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="the .onnx file to write")
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    help="largest difference of a row of outputs, relative to the rows' size  [default: 0.01]",
)
@click.option(
    "--inputs",
    type=click.Path(path_type=Path),
    help=".npz with one array for each input, by name  [default: the build's parity inputs; invented for files]",
)
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
def command(
    source: Path,
    precision: str,
    output: Path,
    tolerance: float | None,
    inputs: Path | None,
    as_json: bool,
) -> None:
    """Convert a graph to 16 bit; nodes that the tolerance needs in float32 are found by trying, and listed.

    Inputs and outputs of the graph keep their types. Weights are written beside the file.
    """
    from pipeline.precision.file import convert_file
    from pipeline.precision.search import TOLERANCE

    from .screen import working

    allowed = TOLERANCE if tolerance is None else tolerance
    with working(f"trying which nodes of {source} may be {precision}"):
        result = convert_file(source, precision, output, allowed, inputs)  # type: ignore[arg-type]
    if as_json:
        print(json.dumps(result.to_dict(), indent=2))
        return
    of_all = f"{result.error_of_all:.2g}" if math.isfinite(result.error_of_all) else "not finite"
    print(
        f"{output}: {result.nodes - len(result.kept)} of {result.nodes} nodes in {precision}; error "
        f"{result.error:.2g} (with all of them: {of_all}), {result.runs} runs"
    )
    for found in result.overflows:
        print(f"does not fit {precision}: {found.name}, {found.elements} elements up to {found.largest:.4g}")
    for tensor in result.infinite:
        print(f"not finite in {precision}: {tensor}")
    for name in result.kept:
        print(f"kept in float32: {name}")
