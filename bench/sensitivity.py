"""Precisions chosen layer by layer beside uniform precision and random ones of the same bytes, measured.

    python -m bench.sensitivity DIR [--tokens 4096] [--random 20] [--picture docs/sensitivity.svg]

DIR is a folder that slipway built of a decoder. Losses of single layers are measured on one half of the held-out
text, as are the whole allocations that refine the choice (`--measurements`); what came of it is judged on the other
half. Budgets lie between int4 and int8 for all layers. Writes bench/results/sensitivity.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from calibration.allocation import Frontier, Option
from calibration.batches import Batches
from calibration.pareto_picture import Point, picture
from calibration.refining import refine
from calibration.report.heldout import HELDOUT_FILE, WINDOW, windows
from calibration.schemes import Scheme
from calibration.sensitivity import Swapping, loss_of, sensitivities
from pipeline.recipe import Recipe
from pipeline.steps.calibrate import tokenizer_of
from pipeline.steps.context import BuildContext
from pipeline.workspace import FUSED, RECIPE, Workspace

RESULTS = Path(__file__).parent / "results" / "sensitivity.json"
SCHEMES: Mapping[str, Scheme | None] = {
    "fp32": None,
    "int8-weights": Scheme("int8", "block", 32),
    "int4": Scheme("int4", "block", 32),
}
SHARES = (0.1, 0.25, 0.5)
"""Where budgets lie between all int4 and all int8."""


def random_precisions(
    options: Mapping[str, Sequence[Option]], budget: int, draw: np.random.Generator
) -> dict[str, str]:
    """Layers in random order are raised from int4 to int8 as far as the budget lasts."""
    sizes = {
        layer: {option.precision: option.num_bytes for option in found} for layer, found in options.items()
    }
    chosen = dict.fromkeys(options, "int4")
    left = budget - sum(found["int4"] for found in sizes.values())
    for layer in draw.permutation(list(options)):
        more = sizes[layer]["int8-weights"] - sizes[layer]["int4"]
        if more <= left:
            chosen[str(layer)], left = "int8-weights", left - more
    return chosen


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--random", type=int, default=20)
    parser.add_argument("--measurements", type=int, default=150, help="of whole allocations, for each budget")
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    context = BuildContext(Recipe.load(arguments.folder / RECIPE), Workspace(arguments.folder), exports=False)
    tokenizer = tokenizer_of(context)
    assert tokenizer is not None
    every = windows(HELDOUT_FILE, tokenizer, min(WINDOW, context.facts.max_length), 2 * arguments.tokens)
    graph = arguments.folder / FUSED
    choosing, judging = (Swapping(graph, Batches(context.facts, part)) for part in (every[::2], every[1::2]))
    options = sensitivities(choosing, SCHEMES)
    frontier = Frontier(options)
    uniform = {
        name: sum(
            option.num_bytes for found in options.values() for option in found if option.precision == name
        )
        for name in SCHEMES
    }
    points = [
        Point("uniform", name, size, loss_of(judging, dict.fromkeys(options, name), SCHEMES))
        for name, size in uniform.items()
    ]
    draw = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for share in SHARES:
        budget = round(uniform["int4"] + share * (uniform["int8-weights"] - uniform["int4"]))
        found = frontier.within_bytes(budget)
        refined = refine(
            options,
            found,
            budget,
            lambda precisions: loss_of(choosing, precisions, SCHEMES),
            measurements=arguments.measurements,
        )
        unrefined = loss_of(judging, found.precisions, SCHEMES)
        loss = loss_of(judging, refined.allocation.precisions, SCHEMES)
        others = [
            loss_of(judging, random_precisions(options, budget, draw), SCHEMES)
            for _ in range(arguments.random)
        ]
        points += [Point("chosen", f"{share:.0%}", refined.allocation.num_bytes, loss)]
        points += [Point("random", "random", budget, other) for other in others]
        best = min(point.loss for point in points if point.kind == "uniform" and point.num_bytes <= budget)
        rows.append(
            {
                "budget": budget,
                "chosen": loss,
                "unrefined": unrefined,
                "expected": found.loss,
                "choosing": {"unrefined": refined.before, "chosen": refined.measured},
                "measurements": refined.measurements,
                "best_uniform": best,
                "random": others,
            }
        )
        print(f"{budget:,} bytes: {loss:.5f}, random {min(others):.5f}", flush=True)
    about = {
        "command": f"python -m bench.sensitivity DIR --tokens {arguments.tokens} --random {arguments.random}"
    }
    RESULTS.write_text(json.dumps({**about, "uniform": uniform, "rows": rows}, indent=2) + "\n")
    if arguments.picture is not None:
        line = list(zip(frontier.num_bytes.tolist(), frontier.losses.tolist(), strict=True))
        arguments.picture.write_text(
            picture(line, points, "Loss over bytes: one precision a layer"), encoding="utf-8"
        )
    Console(width=120).print(_table(rows))


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table("bytes", title="KL divergence from float32, nats a token", title_justify="left")
    for heading in (
        "chosen",
        "by sums alone",
        "expected",
        "best uniform within it",
        "best random",
        "mean random",
    ):
        table.add_column(heading, justify="right")
    for row in rows:
        losses = [
            row["chosen"],
            row["unrefined"],
            row["expected"],
            row["best_uniform"],
            min(row["random"]),
            float(np.mean(row["random"])),
        ]
        table.add_row(f"{row['budget']:,}", *(f"{loss:.5f}" for loss in losses))
    return table


if __name__ == "__main__":
    main()
