"""How long calibration takes beside the plain forward passes over the same data.

    python -m bench.calibration DIR [--rounds 5] [--threads 1]

DIR is a folder that slipway built. Rounds alternate: the forward passes alone, then with the observers of each method.
Figures are medians of CPU seconds of this process, which other load on the machine moves less than the clock's, and
ratios within a round.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from calibration.activations import GraphRun
from calibration.batches import Batches
from calibration.observers import METHODS
from calibration.ranges import LOGIT_STRIDE, Ruler, observe
from calibration.schemes import Scheme
from pipeline.recipe import Recipe
from pipeline.steps.calibrate import samples_of
from pipeline.steps.context import BuildContext
from pipeline.workspace import FUSED, RECIPE, Workspace


def cpu_seconds(work: Callable[[], object]) -> float:
    """Of all threads of this process, while `work` runs."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    context = BuildContext(Recipe.load(arguments.folder / RECIPE), Workspace(arguments.folder), exports=False)
    graph, facts, samples = arguments.folder / FUSED, context.facts, samples_of(context)

    def plain() -> None:
        run = GraphRun(graph, [], threads=arguments.threads)
        for batch in Batches(facts, samples.items, logit_stride=LOGIT_STRIDE):
            run(batch.feeds)

    def observed(method: str) -> Callable[[], object]:
        return lambda: observe(
            graph, facts, samples, Ruler(method, Scheme("int8")), threads=arguments.threads
        )

    plain()  # pages of the weights
    seconds: dict[str, list[float]] = {method: [] for method in METHODS}
    base = []
    for _ in range(arguments.rounds):
        base.append(cpu_seconds(plain))
        for method in METHODS:
            seconds[method].append(cpu_seconds(observed(method)))
    table = Table("", title=f"{len(samples.items)} samples, {samples.tokens} tokens", title_justify="left")
    for heading in ("CPU seconds", "of the forward passes"):
        table.add_column(heading, justify="right")
    table.add_row("forward passes alone", f"{statistics.median(base):.2f}", "1.00")
    for method, found in seconds.items():
        ratio = statistics.median(own / alone for own, alone in zip(found, base, strict=True))
        table.add_row(f"calibration, {method}", f"{statistics.median(found):.2f}", f"{ratio:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
