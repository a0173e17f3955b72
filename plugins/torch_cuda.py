"""The CUDA kernels as torch ops of namespace `slipway`, made from what the library says of its operators.

`registered()` defines for each operator `slipway::<operator>.out`, which writes into the tensors that it is given, and,
where the inputs decide the outputs' shapes, `slipway::<operator>`, which returns new ones. All arguments go by name:

    torch.ops.slipway.swiglu(gate_up=x)
    torch.ops.slipway.swiglu.out(gate_up=x, output=y)

`slipway::paged_attention` (plugins/ops.py) is the functional form that models call; on CUDA it runs the same kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from model_repo.runtime.errors import BadInput

from .cuda.build import current_library
from .cuda.library import Description, Library, TensorDescription
from .cuda.shapes import can_be_made, new_outputs
from .reference import paged_attention as reference

NAMESPACE = "slipway"
_SIGNATURE = signature(reference.paged_attention)


@cache
def library() -> Library:
    """The library that `make plugins` built. Raises BadInput when there is none."""
    path = current_library()
    if path is None:
        raise BadInput("the CUDA kernels are not built here: run `make plugins` (needs nvcc, no GPU)")
    return Library(path)


@cache
def registered() -> tuple[str, ...]:
    """Defines the operators of `library()` for CUDA tensors, once a process; returns their names."""
    _Registration(library(), "CUDA")
    return tuple(library().info["operators"])


@contextmanager
def registered_for(kernels: Library, dispatch_key: str) -> Iterator[None]:
    """The same for any library and dispatch key, and only within the `with` block: for tests."""
    registration = _Registration(kernels, dispatch_key)
    try:
        yield
    finally:
        registration.remove()


class _Registration:
    """Definitions and kernels in torch's registry, for as long as this object is kept."""

    def __init__(self, kernels: Library, dispatch_key: str) -> None:
        untyped: Any = torch.library
        self._fragment = untyped.Library(NAMESPACE, "FRAGMENT")
        for name in kernels.info["operators"]:
            description = kernels.describe(name)
            self._define(
                f"{name}.out", _in_place(kernels, description), in_place_schema(description), dispatch_key
            )
            if can_be_made(description) and not _exists(name):
                self._define(
                    name, _functional(kernels, description), functional_schema(description), dispatch_key
                )
                torch.library.register_fake(f"{NAMESPACE}::{name}", _shapes(description), lib=self._fragment)
        _KEPT.append(self)

    def _define(self, name: str, body: Callable[..., Any], schema: str, dispatch_key: str) -> None:
        self._fragment.define(name + schema)
        self._fragment.impl(name, body, dispatch_key)
        if name.endswith(".out"):
            self._fragment.impl(name, _nothing, "Meta")

    def remove(self) -> None:
        """Takes everything out of the registry again."""
        _KEPT.remove(self)
        self._fragment._destroy()


_KEPT: list[_Registration] = []
"""torch forgets the operators of a fragment that is collected."""


def in_place_schema(description: Description) -> str:
    """The schema of `.out`: required tensors, optional ones, attributes; all by name."""
    letters = iter("abcdefghijklmnopqrstuvwxyz")

    def argument(parameter: TensorDescription) -> str:
        kind = "Tensor" if parameter.role == "input" else f"Tensor({next(letters)}!)"
        return f"{kind}? {parameter.name}=None" if parameter.optional else f"{kind} {parameter.name}"

    ordered = sorted(description.tensors, key=lambda parameter: parameter.optional)
    return f"(*, {', '.join([*map(argument, ordered), *_attributes(description)])}) -> ()"


def functional_schema(description: Description) -> str:
    """The schema of the form that returns its outputs."""
    inputs = sorted((t for t in description.tensors if t.role == "input"), key=lambda t: t.optional)
    arguments = [f"Tensor? {t.name}=None" if t.optional else f"Tensor {t.name}" for t in inputs]
    count = sum(t.role == "output" and not t.optional for t in description.tensors)
    result = "Tensor" if count == 1 else f"({', '.join(['Tensor'] * count)})"
    return f"(*, {', '.join([*arguments, *_attributes(description)])}) -> {result}"


def _attributes(description: Description) -> list[str]:
    return [
        f"int {a.name}={int(a.default)}" if a.integer else f"float {a.name}={a.default!r}"
        for a in description.attributes
    ]


def run(
    kernels: Library,
    operator: str,
    tensors: Mapping[str, Tensor],
    attributes: Mapping[str, float],
    workspace: Tensor | None = None,
) -> None:
    """Runs an operator where its tensors are, on torch's current stream of that device."""
    device = next(iter(tensors.values())).device
    if device.type != "cuda":
        kernels.run(operator, tensors, attributes, workspace=workspace)
        return
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream(device).cuda_stream
        kernels.run(operator, tensors, attributes, workspace=workspace, stream=stream)


def paged_attention(
    kernels: Library, *arguments: Tensor | float | int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """`slipway::paged_attention` by the kernel: the arguments and results of its reference, on copies of the pools.

    Raises BadInput for what the kernel does not take, such as float32 and distance_bias.
    """
    given = _SIGNATURE.bind(*arguments).arguments
    if given["distance_bias"] is not None:
        raise BadInput(
            "paged_attention is given distance_bias (relative positions, as T5 has them), which the CUDA kernel does "
            "not take; run the model on the CPU"
        )
    query, key, value = given["query"], given["key"], given["value"]
    pools = {name: given[name].clone() for name in ("key_cache", "value_cache")}
    tokens, heads, _ = query.shape
    value_dim = pools["value_cache"].shape[3]
    output = query.new_empty(tokens, heads * value_dim)
    tensors = {
        "query": query.flatten(1),
        "key": key.flatten(1),
        "value": value.flatten(1),
        **pools,
        "cumulative_sequence_length": given["cu_seqlens"],
        "past_seqlens": given["past_lens"],
        "block_table": given["block_table"].contiguous(),
        "slot_mapping": given["slot_mapping"],
        "output": output,
    }
    if given["head_sink"] is not None:
        tensors["head_sink"] = given["head_sink"].to(query.dtype)
    if given["alibi_slopes"] is not None:
        tensors["alibi_slopes"] = given["alibi_slopes"].float()
    attributes = {
        "num_heads": heads,
        "kv_num_heads": key.shape[1],
        **{name: given[name] for name in ("scale", "softcap", "local_window_size")},
    }
    run(kernels, "paged_attention", tensors, attributes)
    return output.view(tokens, heads, value_dim), pools["key_cache"], pools["value_cache"]


def _in_place(kernels: Library, description: Description) -> Callable[..., None]:
    def body(**given: Tensor | float | None) -> None:
        tensors, attributes = _separated(given)
        run(kernels, description.name, tensors, attributes)

    return body


def _functional(kernels: Library, description: Description) -> Callable[..., Any]:
    def body(**given: Tensor | float | None) -> Any:
        tensors, attributes = _separated(given)
        outputs = new_outputs(description, tensors)
        run(kernels, description.name, {**tensors, **outputs}, attributes)
        return _returned(outputs)

    return body


def _shapes(description: Description) -> Callable[..., Any]:
    def body(**given: Tensor | float | None) -> Any:
        return _returned(new_outputs(description, _separated(given)[0]))

    return body


def _nothing(**_: Tensor | float | None) -> None:
    """What an operator that writes in place does when only shapes are traced."""


def _separated(given: Mapping[str, Tensor | float | None]) -> tuple[dict[str, Tensor], dict[str, float]]:
    tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
    attributes = {
        name: value for name, value in given.items() if value is not None and not isinstance(value, Tensor)
    }
    return tensors, attributes


def _returned(outputs: Mapping[str, Tensor]) -> Tensor | tuple[Tensor, ...]:
    values = tuple(outputs.values())
    return values[0] if len(values) == 1 else values


def _exists(name: str) -> bool:
    packet = getattr(getattr(torch.ops, NAMESPACE), name, None)
    return packet is not None and "default" in packet.overloads()
