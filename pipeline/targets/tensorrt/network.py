"""A graph as the builder has it: its network, its optimization profiles, and the chips that it is built for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from model_repo.runtime.errors import BadInput

from .complaints import parser_advice, refused
from .profiles import Shapes

_SHOWN = 3


def parse(trt: Any, network: Any, logger: Any, graph: Path) -> None:
    """Fills the network. Raises BadInput with the nodes that the parser refuses."""
    parser = trt.OnnxParser(network, logger)
    if parser.parse_from_file(str(graph)):
        return
    found = refused(parser)
    told = "; ".join(map(str, found[:_SHOWN])) or logger.said()
    advice = parser_advice(found, "; ".join(logger.problems), _domains(graph).get)
    raise BadInput(f"the parser refuses {len(found)} nodes of {graph.name}: {told}. {advice}")


def _domains(graph: Path) -> dict[str, str]:
    """The domain of each node, by name."""
    import onnx

    return {node.name: node.domain for node in onnx.load(str(graph), load_external_data=False).graph.node}


def choose_chips(trt: Any, config: Any, names: Sequence[str]) -> None:
    """Raises BadInput for a compute capability that the package does not know."""
    if names:
        config.num_compute_capabilities = len(names)
    for place, text in enumerate(names):
        config.set_compute_capability(capability(trt, text), place)


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


def profile_of(builder: Any, network: Any, given: Mapping[str, Any]) -> Any:
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
