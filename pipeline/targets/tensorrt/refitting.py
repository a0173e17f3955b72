"""Puts the weights of a graph into an engine that was built without them (`--strip`). That takes a GPU and its driver.

It has never run: no GPU was at hand. Its names are held to TensorRT's classes in tests.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model_repo.runtime.errors import BadInput
from pipeline.child import in_child


def refit_engine(
    target: str,
    engine: Path,
    graph: Path,
    output: Path,
    plugins: tuple[str | None, str | None] = (None, None),
) -> int:
    """Writes `engine` with the weights of `graph` to `output`, whole or not at all; gives its bytes.

    plugins: library in C++ and library of kernels, as in `BuildOptions`, one of which an engine with plugins needs.
    Raises BadInput: no package, no GPU, an engine that takes no weights, a graph that lacks some.
    """
    staged = output.with_name(f"{output.name}.part")
    arguments = {
        "target": target,
        "engine": str(engine),
        "graph": str(graph),
        "output": str(staged),
        "library": plugins[0],
        "kernels": plugins[1],
    }
    try:
        in_child(__name__, "refit_here", arguments)
        staged.replace(output)
    finally:
        staged.unlink(missing_ok=True)
    return output.stat().st_size


def refit_here(
    target: str, engine: str, graph: str, output: str, library: str | None, kernels: str | None
) -> None:
    """`refit_engine` in this process."""
    from .bindings import load
    from .builder import new_logger
    from .gpu_here import gpu_here
    from .plugin_loading import load_plugins

    trt = load(target, plugins=bool(library or kernels))
    if gpu_here() is None:
        raise BadInput(f"{engine} is refitted on a GPU, and there is none here, or no driver")
    logger = new_logger(trt)
    load_plugins(trt, library, kernels)
    runtime = trt.Runtime(logger)
    loaded = runtime.deserialize_cuda_engine(Path(engine).read_bytes())
    if loaded is None:
        raise BadInput(f"{engine} is not taken by {trt.__name__} {trt.__version__}: {logger.said()}")
    _fill(trt, loaded, logger, graph)
    config = loaded.create_serialization_config()
    config.clear_flag(trt.SerializationFlag.EXCLUDE_WEIGHTS)
    Path(output).write_bytes(loaded.serialize_with_config(config))


def _fill(trt: Any, loaded: Any, logger: Any, graph: str) -> None:
    """Raises BadInput for an engine that takes no weights, and for weights that the graph lacks."""
    refitter = trt.Refitter(loaded, logger)
    parser = trt.OnnxParserRefitter(refitter, logger)
    if not parser.refit_from_file(graph):
        raise BadInput(
            f"the weights of {graph} do not fit the engine: {logger.said()}; was it built with --strip?"
        )
    missing = refitter.get_missing_weights()
    if missing:
        raise BadInput(f"{graph} lacks weights of the engine: {', '.join(missing[:3])}")
    if not refitter.refit_cuda_engine():
        raise BadInput(f"the engine does not take the weights of {graph}: {logger.said()}")
