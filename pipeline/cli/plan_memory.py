"""`slipway plan-memory`: what fits on a device, before anything is built."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import model_recipe, recipe_options

if TYPE_CHECKING:
    from rich.table import Table

    from pipeline.memory_plan import Fit, MemoryPlan


@click.command("plan-memory")
@click.argument("model", required=False)
@recipe_options("source", "export", "target")
@click.option(
    "--gpu",
    "gpus",
    multiple=True,
    default=("l4", "l40s", "a100-80", "h100", "h200"),
    show_default=True,
    help="a GPU by name or by size (24GiB); may be repeated",
)
@click.option(
    "--dtype", default="float16", show_default=True, help="weights and activations: float32, float16"
)
@click.option("--kv-dtype", default="float16", show_default=True, help="elements of the key and value pools")
@click.option(
    "--utilization", default=None, type=float, help="share of the memory to plan with  [default: 0.9]"
)
@click.option("--json", "as_json", is_flag=True, help="print one JSON object instead of tables")
def command(
    model: str | None,
    recipe_file: Path | None,
    gpus: tuple[str, ...],
    dtype: str,
    kv_dtype: str,
    utilization: float | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Show bytes of weights, activations and cache of MODEL's engine, and what fits on each GPU.

    Nothing is loaded or built: only the config is read.
    """
    from model_repo.runtime.errors import BadInput
    from pipeline.gpus import gpu
    from pipeline.memory_plan import UTILIZATION, plan_memory
    from pipeline.sources import open_source

    from .screen import show

    share = UTILIZATION if utilization is None else utilization
    if not 0 < share <= 1:
        raise BadInput(f"--utilization is {share}; it must be above 0 and at most 1")
    devices = [gpu(name) for name in gpus]
    recipe = model_recipe(model, recipe_file, given)
    source = open_source(recipe.source.model, recipe.source)
    plan = plan_memory(source, recipe.export, recipe.target, dtype, kv_dtype)
    fits = [plan.fit(device, share) for device in devices]
    if as_json:
        print(
            json.dumps(
                {**plan.to_dict(), "utilization": share, "gpus": [vars(fit) for fit in fits]}, indent=2
            )
        )
        return
    show(_plan_table(plan, dtype), _fit_table(plan, fits, share))


def _plan_table(plan: MemoryPlan, dtype: str) -> Table:
    from rich.table import Table

    from pipeline.disk import in_words

    from .screen import add_row

    table = Table(plan.model, title_justify="left")
    table.add_column("bytes", justify="right")
    table.add_column("of")
    add_row(table, "weights", in_words(plan.weight_bytes), f"{plan.weights:,} in {dtype}")
    add_row(
        table,
        "activations",
        in_words(plan.activation_bytes),
        f"a step of {plan.token_budget} tokens, {dtype}",
    )
    add_row(table, "logits", in_words(plan.logits_bytes), f"{plan.max_batch} sequences, float32")
    add_row(table, "cache of a token", in_words(plan.kv_bytes_per_token), f"all layers, {plan.kv_dtype}")
    length = plan.kv_bytes_per_token * plan.max_length
    add_row(table, "cache of a sequence", in_words(length), f"{plan.max_length} tokens, the longest taken")
    return table


def _fit_table(plan: MemoryPlan, fits: list[Fit], share: float) -> Table:
    from rich.table import Table

    from pipeline.disk import in_words

    from .screen import add_row

    table = Table("GPU", caption=f"planned with {share:.0%} of each GPU's memory")
    for column in ("memory", "left for the cache", "blocks", "tokens", f"sequences of {plan.max_length}"):
        table.add_column(column, justify="right")
    for fit in fits:
        left = in_words(fit.cache_bytes) if fit.cache_bytes > 0 else f"{in_words(-fit.cache_bytes)} too few"
        numbers = (str(fit.num_blocks), str(fit.tokens), str(fit.longest_sequences))
        add_row(
            table,
            fit.gpu,
            in_words(fit.gpu_bytes),
            left,
            *(numbers if fit.fits else ("", "", "does not fit")),
        )
    return table
