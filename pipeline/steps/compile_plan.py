"""Stage compile for TensorRT and TensorRT-RTX: the builder's plan, and what it made of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

from model_repo.runtime.contract import EngineSpec
from model_repo.runtime.errors import BadInput
from model_repo.runtime.linear_cache import LINEAR_CACHE, check_slots
from pipeline.stages import Product, Stage
from pipeline.workspace import LAYERS, LAYERS_PICTURE, lowered

from .compile import CODE, PACKAGES, engine_spec
from .context import BuildContext, graph_files
from .files_beside import files_beside

NOT_COMPARED = "not run: executing it takes a GPU; its inputs and outputs are the lowered graph's"
_BUILDERS = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
"""Distribution of each target's builder."""


def stage(context: BuildContext) -> Stage:
    """The stage in this build."""
    recipe = context.recipe
    return Stage(
        name="compile",
        code=(
            *CODE,
            "pipeline/steps/compile_plan.py",
            "model_repo/runtime/linear_cache.py",
            "plugins/tensorrt",
        ),
        packages=(*PACKAGES, _BUILDERS[recipe.target.name]),
        recipe={"target": recipe.target.to_dict(), "quantize": recipe.quantize.to_dict()},
        inputs=lambda: [*graph_files(context, "lower"), *files_beside(context).values()],
        given=lambda: context.facts.to_dict(),
        run=lambda: _run(context),
        command=("slipway", "compile", context.shown),
        needed_bytes=context.needed_bytes(1),
    )


def _run(context: BuildContext) -> Product:
    from pipeline.targets import get_target
    from pipeline.targets.tensorrt.plugin_loading import plugin_files
    from pipeline.targets.tensorrt.table import picture
    from pipeline.targets.tensorrt.timings import SUFFIX

    workspace, recipe = context.workspace, context.recipe
    target = get_target(recipe.target.name)
    spec = engine_spec(context, context.facts_after("compile"))
    if target.descriptor.cache == "linear":
        spec = linear(spec)
    spec = replace(spec, graph=target.descriptor.engine)
    engine = workspace.staged(target.descriptor.engine)
    context.progress.stand_aside()
    record = target.compile(workspace.path(lowered(recipe.target.name)), engine, recipe.target, spec)
    files = {target.descriptor.engine: engine}
    timings = engine.with_suffix(SUFFIX)
    if timings.is_file():
        files[Path(target.descriptor.engine).with_suffix(SUFFIX).name] = timings
    if recipe.target.plugin_library is not None and spec.kind == "decoder":
        for name, path in plugin_files(recipe.target.plugin_library).items():
            files[name] = workspace.staged(name)
            shutil.copyfile(path, files[name])
        spec = replace(spec, plugin=Path(recipe.target.plugin_library).name)
    for name, path in files_beside(context).items():
        files[name] = workspace.staged(name)
        shutil.copyfile(path, files[name])
    for name, text in ((LAYERS, json.dumps(record, indent=1) + "\n"), (LAYERS_PICTURE, picture(record))):
        files[name] = workspace.staged(name)
        files[name].write_text(text, encoding="utf-8")
    details = {
        "builder": {
            name: record[name] for name in ("version", "compute_capabilities", "build_seconds", "profiles")
        }
    }
    return Product(files, parity=NOT_COMPARED, engine=spec, details=details)


def linear(spec: EngineSpec) -> EngineSpec:
    """`spec` with slots of the longest sequence in place of blocks: as many as the cache's bytes hold.

    Raises BadInput when not one slot fits, and for slots that begin where no engine takes a tensor.
    """
    if spec.limits is None:
        return spec
    limits = spec.limits
    slots = min(limits.max_batch, limits.num_blocks * limits.block_size // limits.max_length)
    if slots < 1:
        raise BadInput(
            f"the caches hold {limits.num_blocks * limits.block_size} tokens and a slot has {limits.max_length}; raise "
            "--kv-cache-bytes, or lower --max-length"
        )
    limits = replace(limits, max_batch=slots, block_size=limits.max_length, num_blocks=slots)
    made = replace(spec, limits=limits, features=(*spec.features, LINEAR_CACHE))
    check_slots(made)
    return made
