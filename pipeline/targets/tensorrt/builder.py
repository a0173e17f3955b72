"""Builds an engine from an ONNX file with TensorRT or TensorRT-RTX, in a process of its own.

The builder's memory goes with that process, Ctrl-C ends it at once, and a parser that aborts is an error of ours.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from model_repo.runtime.errors import BadInput
from pipeline.builder_recipe import BuilderRecipe
from pipeline.child import in_child

from .bindings import PACKAGES, load
from .complaints import builder_advice, shortened
from .gpu_here import GpuHere, gpu_here
from .layers import BEGIN
from .monitor import progress_monitor
from .network import choose_chips, parse, profile_of
from .plugin_loading import load_plugins
from .profiles import Profile
from .settings import configure
from .timings import SUFFIX, keep_timings, timing_file, use_timings


@dataclass(frozen=True)
class BuildOptions:
    """How to build. `compute_capabilities`: chips of an ahead-of-time TensorRT-RTX engine, such as 8.9 and 12.0; empty:
    the chip that is here, or any (portable). `builder`: the recipe's own options. For graphs with nodes of
    plugins/tensorrt one of: `plugin_library`, the C++ plugins; `kernels`, the library of CUDA kernels that the Python
    plugins are to call."""

    compute_capabilities: tuple[str, ...] = ()
    plugin_library: str | None = None
    kernels: str | None = None
    builder: BuilderRecipe = field(default_factory=BuilderRecipe)


@dataclass(frozen=True)
class Built:
    """What a build gave. `layers`: the builder's own report of them (`layers.parse_layers`); empty where none was asked
    for. `gpu`: name and compute capability of the GPU that it was built beside. `tactics`: a hash of the kernels that
    were chosen by timing, equal for builds that chose the same."""

    bytes: int
    seconds: float
    version: str
    layers: str
    warnings: tuple[str, ...] = ()
    gpu: tuple[str, str] | None = None
    tactics: str = ""


def build_engine(
    target: str, graph: Path, engine: Path, profiles: Sequence[Profile], options: BuildOptions
) -> Built:
    """Builds `graph` into the file `engine`, which appears whole or not at all; TensorRT's timings lie beside it.

    Raises BadInput: the package is missing, an integer does not fit, the parser refuses the graph (nodes named), or the
    builder does (in its own words).
    """
    _check(graph)
    arguments = {
        "target": target,
        "graph": str(graph),
        "engine": str(engine),
        "profiles": [{"name": profile.name, "shapes": profile.shapes} for profile in profiles],
        "options": asdict(options),
    }
    try:
        made: dict[str, Any] = in_child(__name__, "build_here", arguments)
    finally:
        Path(f"{engine}.part").unlink(missing_ok=True)  # of a process that was ended
    gpu = tuple(made["gpu"]) if made["gpu"] else None
    return Built(**{**made, "warnings": tuple(made["warnings"]), "gpu": gpu})


def parse_only(target: str, graph: Path, profiles: Sequence[Profile], kernels: str | None = None) -> str:
    """Lets the parser read `graph` and the builder judge the profiles, and builds nothing; gives the package's version.

    kernels: as in `BuildOptions`, where the graph holds plugins. Raises BadInput as `build_engine` does.
    """
    _check(graph)
    version: str = in_child(
        __name__,
        "parse_here",
        {
            "target": target,
            "graph": str(graph),
            "profiles": [{"name": profile.name, "shapes": profile.shapes} for profile in profiles],
            "kernels": kernels,
        },
    )
    return version


def _check(graph: Path) -> None:
    """Raises BadInput for integers that do not fit, and unknown opsets. What this imports, the builder's process then
    need not hold."""
    from pipeline.graph import load_graph

    from .integers import check_integers
    from .opsets import check_opset

    model = load_graph(graph)
    check_opset(model)
    check_integers(model)


def package_problem(target: str) -> str:
    """Why the target's package does not load here, and what to install; empty when it does."""
    if find_spec(PACKAGES[target].module) is None:
        return problem_here(target)
    problem: str = in_child(__name__, "problem_here", {"target": target})
    return problem


def problem_here(target: str) -> str:
    """`package_problem` in this process, which keeps the libraries."""
    try:
        load(target)
    except BadInput as error:
        return str(error)
    return ""


def parse_here(target: str, graph: str, profiles: list[dict[str, Any]], kernels: str | None = None) -> str:
    """`parse_only` in this process."""
    trt = load(target, plugins=kernels is not None)
    _prepared(trt, new_logger(trt), Path(graph), profiles, BuildOptions(kernels=kernels))
    return str(trt.__version__)


def _prepared(
    trt: Any, logger: Any, graph: Path, profiles: list[dict[str, Any]], options: BuildOptions
) -> tuple[Any, Any, Any]:
    """Builder, network and configuration. Raises BadInput for what the parser, or a profile's shapes, do not allow."""
    load_plugins(trt, options.plugin_library, options.kernels)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parse(trt, network, logger, graph)
    config = builder.create_builder_config()
    choose_chips(trt, config, options.compute_capabilities)
    configure(trt, config, options.builder)
    for given in profiles:
        if config.add_optimization_profile(profile_of(builder, network, given)) < 0:
            raise BadInput(f"the builder does not take profile {given['name']!r}: {logger.said()}")
    return builder, network, config


def build_here(
    target: str, graph: str, engine: str, profiles: list[dict[str, Any]], options: dict[str, Any]
) -> dict[str, Any]:
    """`build_engine` in this process; arguments and result as JSON. Ctrl-C ends the process."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    chosen = BuildOptions(
        tuple(options["compute_capabilities"]),
        options["plugin_library"],
        options["kernels"],
        BuilderRecipe.from_dict(options["builder"]),
    )
    trt = load(target, plugins=bool(chosen.plugin_library or chosen.kernels))
    logger = new_logger(trt)
    builder, network, config = _prepared(trt, logger, Path(graph), profiles, chosen)
    gpu = gpu_here()
    times = target == "tensorrt"
    kept = _use_timings(trt, config, logger, gpu, chosen) if times else None
    begin = time.perf_counter()
    with progress_monitor(trt, sys.stderr) if sys.stderr.isatty() else nullcontext() as monitor:
        if monitor is not None:
            config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        advice = builder_advice([*logger.problems, *logger.warnings])
        raise BadInput(
            f"the builder does not take {Path(graph).name}: {logger.said()}{f'. {advice}' if advice else ''}"
        )
    seconds = round(time.perf_counter() - begin, 3)
    staged = Path(f"{engine}.part")
    try:
        staged.write_bytes(plan)
        staged.replace(engine)
    finally:
        staged.unlink(missing_ok=True)
    tactics = keep_timings(config, kept, Path(engine).with_suffix(SUFFIX)) if times else ""
    return {
        "bytes": Path(engine).stat().st_size,
        "seconds": seconds,
        "version": str(trt.__version__),
        "layers": logger.layers,
        "warnings": list(logger.warnings),
        "gpu": gpu,
        "tactics": tactics,
    }


def _use_timings(
    trt: Any, config: Any, logger: Any, gpu: GpuHere | None, options: BuildOptions
) -> Path | None:
    """The file of kept timings, whose content the builder has; None where a build is replayed."""
    replay, kernels = options.builder.replay, options.plugin_library or options.kernels
    place = timing_file(
        options.builder.timing_cache,
        gpu,
        str(trt.__version__),
        Path(kernels) if kernels is not None else None,
    )
    note = use_timings(trt, config, place, Path(replay) if replay is not None else None)
    if note:
        logger.warnings[note] = None
    return place if replay is None else None


def new_logger(trt: Any) -> Any:
    """A logger that keeps errors, warnings and the report of the layers."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.problems: list[str] = []
            self.warnings: dict[str, None] = {}
            self.layers = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.problems.append(message)
            elif severity == trt.ILogger.WARNING:
                self.warnings[message] = None
            elif message.startswith(BEGIN):
                self.layers = message

        def said(self) -> str:
            return shortened(self.problems)

    return Logger()
