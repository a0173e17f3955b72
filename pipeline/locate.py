"""`locate`: where an engine of TensorRT or TensorRT-RTX departs from the graph that it was built of."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from model_repo.runtime.errors import BadInput
from model_repo.runtime.linear_cache import LINEAR_CACHE

from .parity.engine_values import EngineReference, Opener
from .parity.feeds import Feeds, graph_feeds
from .parity.linear import linear_feeds
from .parity.sessions import computable_graph, graph_session
from .parity.walk import Walk, walk
from .recipe import Recipe
from .steps.compile import engine_spec
from .steps.context import BuildContext
from .workspace import RECIPE, STAGING, Workspace, lowered

if TYPE_CHECKING:
    from model_repo.runtime.contract import EngineSpec
    from model_repo.runtime.cuda_device import CudaDevice
    from model_repo.runtime.device import Device
    from model_repo.runtime.tensorrt_engine import TensorRtEngine

BUILT = ("tensorrt", "tensorrt-rtx")


def locate(folder: Path, per_build: int | None = None, limit: float | None = None) -> Walk:
    """Builds the engine of the build in `folder` again, with the tensors between its nodes as outputs, runs it on this
    machine's GPU, and walks through the lowered graph beside it (`EngineReference`).

    Raises BadInput: no such build, a target whose engines `parity` compares, a missing package or GPU.
    """
    from model_repo.runtime.cuda_device import CudaDevice

    context = built(folder)
    device = CudaDevice()
    try:
        with tempfile.TemporaryDirectory(prefix=STAGING) as scratch:
            return beside(context, device, _opener(context, device, Path(scratch)), per_build, limit)
    finally:
        device.close()


def built(folder: Path) -> BuildContext:
    """The build in `folder`. Raises BadInput when there is none, or none of these targets."""
    if not (folder / RECIPE).is_file():
        raise BadInput(f"{folder} holds no build; give a folder that `slipway build` wrote")
    recipe = Recipe.load(folder / RECIPE)
    if recipe.target.name not in BUILT:
        raise BadInput(
            f"{folder} is built for target {recipe.target.name!r}; engines of {' and '.join(map(repr, BUILT))} are "
            "held against their graphs here, and `slipway parity` compares everything else"
        )
    return BuildContext(recipe, Workspace(folder), exports=False)


def beside(
    context: BuildContext, device: Device, open_engine: Opener, per_build: int | None, limit: float | None
) -> Walk:
    """`locate` with any engine: what `open_engine` makes of the lowered graph with more outputs."""
    context.required("lower")
    graph = context.workspace.path(lowered(context.recipe.target.name))
    spec = engine_spec(context, context.facts_after("lower"))
    feeds = _feeds(context, spec, graph)
    reference = EngineReference(graph, device, open_engine, feeds, per_build)
    return walk(reference, computable_graph(graph), feeds, limit)


def _feeds(context: BuildContext, spec: EngineSpec, graph: Path) -> Callable[[], list[Feeds]]:
    """The parity inputs as far as the engine's limits take them."""
    inputs = context.parity_inputs()
    if spec.limits is None:
        most = context.recipe.target.max_batch if spec.kind == "encoder" else len(inputs)
        return lambda: graph_feeds(spec.kind, (), inputs[:most])
    prompts = inputs[: spec.limits.max_batch]
    if LINEAR_CACHE not in spec.features:
        block_size = spec.limits.block_size
        return lambda: graph_feeds("decoder", spec.kv, prompts, block_size)
    with graph_session(graph, graph.with_name(f"{STAGING}feeds.onnx")) as session:
        steps = linear_feeds(session, prompts)
    return lambda: [dict(step) for step in steps]


def _opener(context: BuildContext, device: CudaDevice, scratch: Path) -> Opener:
    """Builds an engine as the build does, and loads it."""
    from model_repo.runtime.built_engine import BuiltEngine
    from model_repo.runtime.tensorrt_engine import TensorRtEngine
    from pipeline.targets import get_target

    target = context.recipe.target
    spec = engine_spec(context, context.facts_after("lower"))

    @contextmanager
    def open_engine(graph: Path) -> Iterator[TensorRtEngine]:
        engine = scratch / "exposed.engine"
        record = get_target(target.name).compile(graph, engine, target, spec)
        plugins = (Path(target.plugin_library),) if target.plugin_library else ()
        loaded = TensorRtEngine(device, BuiltEngine.of_record(engine, record, plugins))
        try:
            yield loaded
        finally:
            loaded.close()

    return open_engine
