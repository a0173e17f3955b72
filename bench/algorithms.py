"""Perplexity of a decoder whose weights each algorithm has quantized, beside float32 on the same held-out text.

    python -m bench.algorithms DIR [--tokens 8192] [--samples 16] [--scheme int4-32 ...] [--algorithm gptq ...]

DIR is a folder that slipway built. Every linear layer is quantized, the head included, and so is a table of embeddings
that is the head too; inputs stay in float32. `rotated` goes before an algorithm: the residual stream is rotated first.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import onnx_ir as ir
from rich.console import Console
from rich.table import Table

from calibration.activations import graph_session, observable
from calibration.batches import Batches
from calibration.blocks import Walked, walk
from calibration.linear_layers import linear_layers, replace_weight
from calibration.methods import METHODS
from calibration.report.heldout import HELDOUT_FILE, WINDOW, windows
from calibration.report.language import compare_language
from calibration.report.subject import Subject
from calibration.rotating import rotate
from calibration.schemes import Scheme, dequantize, quantize
from pipeline.recipe import Recipe
from pipeline.steps.calibrate import samples_of, tokenizer_of
from pipeline.steps.context import BuildContext
from pipeline.workspace import FUSED, RECIPE, Workspace

SCHEMES = {
    "int4-32": Scheme("int4", "block", 32),
    "int4-32-signed": Scheme("int4", "block", 32, signed_scales=True),
    "int4-32-asymmetric": Scheme("int4", "block", 32, symmetric=False),
    "int4-channel": Scheme("int4", "channel"),
}
ROTATED = "rotated "
ALGORITHMS = (*METHODS, ROTATED + "rtn", ROTATED + "gptq")


def quantized(
    context: BuildContext, samples: list[Any], scheme: Scheme, name: str
) -> tuple[ir.Model, Walked, float]:
    """The graph with what the quantized weights mean, what was decided, and CPU seconds of this process."""
    model = observable(context.workspace.path(FUSED))
    begin = time.process_time()
    if name.startswith(ROTATED):
        rotate(model)
    layers = {layer.name: layer for layer in linear_layers(model)}
    with tempfile.TemporaryDirectory() as state:
        batches, schemes = Batches(context.facts, samples), dict.fromkeys(layers, scheme)
        found = walk(model, batches, schemes, name.removeprefix(ROTATED), Path(state), name)
        for layer in layers.values():
            layer.write(dequantize(found.quantized[layer.name]))
    for weight, array in found.folded.items():
        replace_weight(model.graph.initializers[weight], array)
    for node in model.graph:  # tables that rotation has taken from the head
        table = node.inputs[0] if node.op_type == "Gather" else None
        if table is not None and table.const_value is not None and table.name not in layers:
            replace_weight(table, dequantize(quantize(table.const_value.numpy(), scheme)))
    return model, found, time.process_time() - begin


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=8192, help="of held-out text")
    parser.add_argument("--samples", type=int, default=16, help="calibration samples")
    parser.add_argument("--output", type=Path, help="a .json for all figures")
    parser.add_argument("--scheme", dest="schemes", action="append", choices=list(SCHEMES))
    parser.add_argument("--algorithm", dest="algorithms", action="append", choices=ALGORITHMS)
    arguments = parser.parse_args()
    context = BuildContext(Recipe.load(arguments.folder / RECIPE), Workspace(arguments.folder), exports=False)
    facts, tokenizer = context.facts, tokenizer_of(context)
    assert tokenizer is not None
    heldout = windows(HELDOUT_FILE, tokenizer, min(WINDOW, facts.max_length), arguments.tokens)
    every = samples_of(context).items
    samples = [every[place * len(every) // arguments.samples] for place in range(arguments.samples)]
    reference = observable(arguments.folder / FUSED)
    rows: list[dict[str, Any]] = []
    for scheme in arguments.schemes or SCHEMES:
        for algorithm in arguments.algorithms or ALGORITHMS:
            model, found, seconds = quantized(context, samples, SCHEMES[scheme], algorithm)
            sides = [
                Subject(algorithm, graph_session(side, arguments.folder, 0), 0, facts.kv)
                for side in (model, reference)
            ]
            figures = compare_language(sides[0], sides[1], heldout, facts.vocab_size)
            error = sum(found.errors.values()) / len(found.errors)
            rows.append(
                {
                    "scheme": scheme,
                    "algorithm": algorithm,
                    "layer_error": error,
                    "cpu_seconds": seconds,
                    **figures,
                }
            )
            print(f"{scheme} {algorithm}: {figures['perplexity_increase']:+.2%}", flush=True)
    calibrated = sum(map(len, samples))
    if arguments.output is not None:
        content = {"calibration_tokens": calibrated, "rows": rows}
        arguments.output.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    Console(width=140).print(_table(rows, calibrated))


def _table(rows: list[dict[str, Any]], calibrated: int) -> Table:
    table = Table(
        "scheme",
        "algorithm",
        title=f"{rows[0]['tokens']} tokens; calibrated on {calibrated}",
        title_justify="left",
    )
    for heading in ("perplexity", "increase", "KL", "top-1", "layer error", "CPU s"):
        table.add_column(heading, justify="right")
    table.add_row("float32", "", f"{rows[0]['reference_perplexity']:.3f}")
    for row in rows:
        table.add_row(
            row["scheme"],
            row["algorithm"],
            f"{row['perplexity']:.3f}",
            f"{row['perplexity_increase']:+.2%}",
            f"{row['kl']:.4f}",
            f"{row['top1']:.2%}",
            f"{row['layer_error']:.5f}",
            f"{row['cpu_seconds']:.0f}",
        )
    return table


if __name__ == "__main__":
    main()
