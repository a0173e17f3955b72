"""Builds an engine from an ONNX file with TensorRT or TensorRT-RTX, in a process of its own.

The builder's memory goes with that process, Ctrl-C ends it at once, and a parser that aborts is an error of ours.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from model_repo.runtime.errors import BadInput
from pipeline.child import in_child

from .bindings import PACKAGES, load
from .layers import BEGIN
from .monitor import progress_monitor
from .plugin_loading import load_plugins
from .profiles import Profile, Shapes

_SHOWN = 3


@dataclass(frozen=True)
class BuildOptions:
    """How to build. `compute_capabilities`: chips of an ahead-of-time TensorRT-RTX engine, such as 8.9 and 12.0; empty:
    the chip that is here, or any (portable). `optimization_level`: 0 to 5; None: the builder's own. For graphs with
    nodes of plugins/tensorrt one of: `plugin_library`, the C++ plugins; `kernels`, the library of CUDA kernels that the
    Python plugins are to call."""

    compute_capabilities: tuple[str, ...] = ()
    optimization_level: int | None = None
    workspace_bytes: int | None = None
    plugin_library: str | None = None
    kernels: str | None = None


@dataclass(frozen=True)
class Built:
    """What a build gave. `layers`: the builder's own report of them (`layers.parse_layers`)."""

    bytes: int
    seconds: float
    version: str
    layers: str
    warnings: tuple[str, ...] = ()


def build_engine(
    target: str, graph: Path, engine: Path, profiles: Sequence[Profile], options: BuildOptions
) -> Built:
    """Builds `graph` into the file `engine`, which appears whole or not at all.

    Raises BadInput: the package is missing, an integer does not fit, the parser refuses the graph (nodes named), or the
    builder does (in its own words).
    """
    _check(graph)
    made: dict[str, Any] = in_child(
        __name__,
        "build_here",
        {
            "target": target,
            "graph": str(graph),
            "engine": str(engine),
            "profiles": [{"name": profile.name, "shapes": profile.shapes} for profile in profiles],
            "options": asdict(options),
        },
    )
    return Built(**{**made, "warnings": tuple(made["warnings"])})


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
    """Raises BadInput for integers that do not fit. What this imports, the builder's process then need not hold."""
    from pipeline.graph import load_graph

    from .integers import check_integers

    check_integers(load_graph(graph))


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
    _prepared(trt, _logger(trt), Path(graph), profiles, BuildOptions(kernels=kernels))
    return str(trt.__version__)


def _prepared(
    trt: Any, logger: Any, graph: Path, profiles: list[dict[str, Any]], options: BuildOptions
) -> tuple[Any, Any, Any]:
    """Builder, network and configuration. Raises BadInput for what the parser, or a profile's shapes, do not allow."""
    load_plugins(trt, options.plugin_library, options.kernels)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(trt, network, logger, graph)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    _configure(trt, config, options)
    for given in profiles:
        if config.add_optimization_profile(_profile(builder, network, given)) < 0:
            raise BadInput(f"the builder does not take profile {given['name']!r}: {logger.said()}")
    return builder, network, config


def build_here(
    target: str, graph: str, engine: str, profiles: list[dict[str, Any]], options: dict[str, Any]
) -> dict[str, Any]:
    """`build_engine` in this process; arguments and result as JSON. Ctrl-C ends the process."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    chosen = BuildOptions(**{**options, "compute_capabilities": tuple(options["compute_capabilities"])})
    trt = load(target, plugins=bool(chosen.plugin_library or chosen.kernels))
    logger = _logger(trt)
    builder, network, config = _prepared(trt, logger, Path(graph), profiles, chosen)
    begin = time.perf_counter()
    with progress_monitor(trt, sys.stderr) as monitor:
        config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BadInput(f"the builder does not take {Path(graph).name}: {logger.said()}")
    seconds = round(time.perf_counter() - begin, 3)
    staged = Path(f"{engine}.part")
    try:
        staged.write_bytes(plan)
        staged.replace(engine)
    finally:
        staged.unlink(missing_ok=True)
    return {
        "bytes": Path(engine).stat().st_size,
        "seconds": seconds,
        "version": str(trt.__version__),
        "layers": logger.layers,
        "warnings": list(logger.warnings),
    }


def _parse(trt: Any, network: Any, logger: Any, graph: Path) -> None:
    """Fills the network. Raises BadInput with the nodes that the parser refuses."""
    parser = trt.OnnxParser(network, logger)
    if parser.parse_from_file(str(graph)):
        return
    errors = [parser.get_error(place) for place in range(parser.num_errors)]
    told = "; ".join(
        f"{error.node_operator()} {error.node_name()!r}: {error.desc()}" for error in errors[:_SHOWN]
    )
    raise BadInput(f"the parser refuses {len(errors)} nodes of {graph.name}: {told or logger.said()}")


def _configure(trt: Any, config: Any, options: BuildOptions) -> None:
    """Sets what the options ask for. Raises BadInput for a compute capability that the package does not know."""
    if options.compute_capabilities:
        config.num_compute_capabilities = len(options.compute_capabilities)
        for place, text in enumerate(options.compute_capabilities):
            config.set_compute_capability(capability(trt, text), place)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)


def capability(trt: Any, text: str) -> Any:
    """The package's own name of a compute capability such as 8.9. Raises BadInput with those that it has."""
    known = {
        f"{name[2:-1]}.{name[-1]}": name
        for name in dir(trt.ComputeCapability)
        if name[:2] == "SM" and name[2:].isdigit()
    }
    if text not in known:
        raise BadInput(
            f"compute capability {text!r} is not one that this TensorRT-RTX ({trt.__version__}) builds for; it has "
            f"{', '.join(sorted(known, key=float))}. For other GPUs there is target 'tensorrt'"
        )
    return getattr(trt.ComputeCapability, known[text])


def _profile(builder: Any, network: Any, given: Mapping[str, Any]) -> Any:
    """The builder's own object. Raises BadInput for an input that it does not name, or whose shapes it gets wrong."""
    profile = builder.create_optimization_profile()
    shapes = {name: Shapes(*(tuple(shape) for shape in three)) for name, three in given["shapes"].items()}
    for place in range(network.num_inputs):
        given_input = network.get_input(place)
        name, dims = given_input.name, tuple(given_input.shape)
        if name not in shapes:
            raise BadInput(
                f"profile {given['name']!r} names no shape of input {name!r}; it has {', '.join(shapes)}"
            )
        least, usual, most = shapes[name]
        fits = all(
            len(shape) == len(dims)
            and all(size in (-1, given) for size, given in zip(dims, shape, strict=True))
            for shape in shapes[name]
        )
        if not fits or not all(a <= b <= c for a, b, c in zip(least, usual, most, strict=True)):
            raise BadInput(
                f"profile {given['name']!r} gives input {name!r} the shapes {list(least)} to {list(most)}, usually "
                f"{list(usual)}; the input is {list(dims)}, where -1 may be any size"
            )
        profile.set_shape(name, least, usual, most)
    return profile


def _logger(trt: Any) -> Any:
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
            return "; ".join(self.problems[-_SHOWN:]) or "it gives no reason"

    return Logger()
