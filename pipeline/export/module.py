"""A user's torch module with example inputs, ready to run and to be exported."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.export import Dim

from model_repo.runtime.contract import AxisSpec, TensorSpec
from model_repo.runtime.errors import BadInput
from pipeline.module_example import ModuleExample
from pipeline.sources.user_code import guarded, user_line

from .attention import UnsupportedModel
from .lengths import lengths_that_change
from .tensor_model import Array, Feeds, TensorModel, checked_dtype
from .tidy import tidy
from .trace import trace

_MOST = 1 << 20
"""Bound of a dynamic size without one, for the exporter."""


class TorchModel(TensorModel):
    """See `TensorModel`. `what` names the user's function in messages, `seconds` bounds each call of the module."""

    origin = "the torch module"

    def __init__(self, example: ModuleExample, what: str, seconds: float) -> None:
        self._what = what
        self._seconds = seconds
        self._module = _checked_module(example.module, what)
        self._by_name = isinstance(example.inputs, Mapping)
        tensors = _named_inputs(self._module, example.inputs, what)
        axes = _dynamic(example, tensors, what)
        self.inputs = tuple(
            TensorSpec(
                name,
                checked_dtype(str(tensor.dtype).removeprefix("torch."), f"input {name!r} of {what}"),
                tuple(axes[name].get(axis, size) for axis, size in enumerate(tensor.shape)),
            )
            for name, tensor in tensors.items()
        )
        self.example = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
        self.axes = _limits(example, self.sizes(), what)
        self._outputs = self._call(self.example)
        self._output_names = _output_names(example, self._outputs, what)

    @classmethod
    def of(cls, value: Any, what: str, seconds: float) -> TorchModel:
        """What a user's function returned: a ModuleExample, or a module and its inputs. Raises BadInput."""
        if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], nn.Module):
            value = ModuleExample(*value)
        if not isinstance(value, ModuleExample):
            raise BadInput(
                f"{what} returned {_kind(value)}; it must return (torch.nn.Module, inputs) or a pipeline.ModuleExample"
            )
        return cls(value, what, seconds)

    @property
    def output_names(self) -> Sequence[str]:
        """See `TensorModel`."""
        return self._output_names

    def run(self, feeds: Feeds) -> list[Array]:
        """See `TensorModel`."""
        outputs = self._call(feeds)
        if [name for name, _ in outputs] != [name for name, _ in self._outputs]:
            raise BadInput(
                f"{self._what}: the module gave {len(self._outputs)} outputs on the example and {len(outputs)} at "
                "another run; it must always give the same ones"
            )
        return [tensor.detach().cpu().numpy() for _, tensor in outputs]

    def graph(self, opset: int) -> ir.Model:
        """See `TensorModel`. Raises UnsupportedModel when torch cannot export the module."""
        sizes = self.sizes()
        bounds = {axis.name: axis for axis in self.axes}
        # The exporter takes sizes of 0 and 1 for fixed ones, and equal sizes for the same one.
        feeds = self.resized(_distinct(sizes, bounds))
        dims = {
            axis.name: Dim(axis.name, min=axis.least, max=min(axis.most or _MOST, _MOST))
            for axis in self.axes
        }
        shapes = tuple(
            {axis: dims[dim] for axis, dim in enumerate(spec.shape) if isinstance(dim, str)}
            for spec in self.inputs
        )
        names = [spec.name for spec in self.inputs]
        wrapper = _Flat(self._module, names if self._by_name else None)
        try:
            with lengths_that_change(self._module):
                graph = trace(
                    wrapper,
                    tuple(torch.from_numpy(feeds[name]) for name in names),
                    dynamic_shapes=(shapes,),
                    input_names=names,
                    output_names=self.output_names,
                    opset=opset,
                )
        except UnsupportedModel as error:
            raise _explained(error, self._what) from error
        tidy(graph, self._module)
        return graph

    def _call(self, feeds: Feeds) -> list[tuple[str, Tensor]]:
        """Outputs by name, in order. Raises BadInput."""
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in feeds.items()}
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items())
        with (
            guarded(f"the module of {self._what}, called with {shapes},", self._seconds),
            torch.no_grad(),
        ):
            value = self._module(**tensors) if self._by_name else self._module(*tensors.values())
        return flat_outputs(value, self._what)


class _Flat(nn.Module):
    """The module with tensors by place as arguments and a tuple of tensors as result."""

    def __init__(self, model: nn.Module, names: Sequence[str] | None) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        if self.names is None:
            value = self.model(*tensors)
        else:
            value = self.model(**dict(zip(self.names, tensors, strict=True)))
        return tuple(tensor for _, tensor in _flat(value, "output", "the module"))


def flat_outputs(value: Any, what: str) -> list[tuple[str, Tensor]]:
    """The tensors of a module's result, by name, in order. Raises BadInput when they cannot be outputs."""
    outputs = list(_flat(value, "output", what))
    names = [name for name, _ in outputs]
    if not outputs or len(set(names)) != len(names):
        raise BadInput(
            f"{what}: the module's outputs are {names}; at least one with a name of its own is needed"
        )
    for name, tensor in outputs:
        checked_dtype(str(tensor.dtype).removeprefix("torch."), f"output {name!r} of {what}")
    return outputs


def _flat(value: Any, name: str, what: str) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a nested result with names made of the keys on their way. Raises BadInput for other things."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, str(key) if name == "output" else f"{name}_{key}", what)
    elif isinstance(value, (tuple, list)):
        for place, item in enumerate(value):
            yield from _flat(item, name if len(value) == 1 else f"{name}_{place}", what)
    elif value is not None:
        raise BadInput(
            f"{what}: the module's result {name} is {_kind(value)}; tensors, and tuples, lists and mappings of them, "
            "are supported"
        )


def _checked_module(module: Any, what: str) -> nn.Module:
    if not isinstance(module, nn.Module):
        raise BadInput(f"{what} gave {_kind(module)} as the module; a torch.nn.Module is needed")
    return module.eval().requires_grad_(False)


def _named_inputs(module: nn.Module, inputs: Any, what: str) -> dict[str, Tensor]:
    """Example inputs by name, in order. Raises BadInput when they are no tensors or do not fit `forward`."""
    if isinstance(inputs, Tensor):
        inputs = (inputs,)
    if not isinstance(inputs, (tuple, list, Mapping)) or not inputs:
        raise BadInput(f"{what} gave {_kind(inputs)} as inputs; a tuple or a mapping of tensors is needed")
    signature = inspect.signature(module.forward)
    try:
        if isinstance(inputs, Mapping):
            signature.bind(**inputs)
            named = dict(inputs)
        else:
            named = dict(_by_place(signature, signature.bind(*inputs)))
    except TypeError as error:
        raise BadInput(
            f"{what}: the example inputs do not fit {type(module).__name__}.forward{signature}: {error}"
        ) from error
    for name, tensor in named.items():
        if not isinstance(tensor, Tensor):
            raise BadInput(f"{what}: input {name!r} is {_kind(tensor)}; tensors are supported")
        if 0 in tensor.shape:
            raise BadInput(
                f"{what}: input {name!r} has the shape {list(tensor.shape)}; an example without elements shows nothing"
            )
    return named


def _by_place(signature: inspect.Signature, bound: inspect.BoundArguments) -> Iterator[tuple[str, Any]]:
    """Names of arguments given by place; those of *args are numbered."""
    for name, value in bound.arguments.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL:
            for place, item in enumerate(value):
                yield f"{name}_{place}", item
        else:
            yield name, value


def _dynamic(example: ModuleExample, tensors: Mapping[str, Tensor], what: str) -> dict[str, dict[int, str]]:
    """Input name -> axis (from 0) -> name of the size. Raises BadInput for what does not fit the inputs."""
    axes: dict[str, dict[int, str]] = {name: {} for name in tensors}
    sizes: dict[str, int] = {}
    for name, given in example.dynamic.items():
        if name not in tensors:
            raise BadInput(f"{what}: dynamic names {name!r}, no input; there are {', '.join(tensors)}")
        shape = tensors[name].shape
        for axis, size_name in given.items():
            if not isinstance(axis, int) or not -len(shape) <= axis < len(shape):
                raise BadInput(f"{what}: dynamic axis {axis!r} of {name!r}, whose shape is {list(shape)}")
            if not isinstance(size_name, str) or not size_name.isidentifier():
                raise BadInput(
                    f"{what}: the size of axis {axis} of {name!r} is called {size_name!r}; give a name"
                )
            size = int(shape[axis])
            if sizes.setdefault(size_name, size) != size:
                raise BadInput(
                    f"{what}: the size {size_name!r} is {sizes[size_name]} and {size} in the example; sizes that "
                    "differ need names that differ"
                )
            axes[name][axis % len(shape)] = size_name
    return axes


def _limits(example: ModuleExample, sizes: Mapping[str, int], what: str) -> tuple[AxisSpec, ...]:
    """The dynamic sizes with their bounds. Raises BadInput when the example is outside."""
    unknown = sorted(set(example.limits) - set(sizes))
    if unknown:
        raise BadInput(
            f"{what}: limits name {unknown[0]!r}, no dynamic size; there are {', '.join(sizes) or 'none'}"
        )
    axes = []
    for name, size in sizes.items():
        least, most = example.limits.get(name, (1, None))
        if not 1 <= least <= size or (most is not None and size > most):
            raise BadInput(
                f"{what}: the size {name!r} is {size} in the example, outside its limits {least} to {most}"
            )
        axes.append(AxisSpec(name, least, most))
    return tuple(axes)


def _output_names(
    example: ModuleExample, outputs: Sequence[tuple[str, Tensor]], what: str
) -> tuple[str, ...]:
    names = tuple(example.output_names) or tuple(name for name, _ in outputs)
    if len(names) != len(outputs) or len(set(names)) != len(names):
        raise BadInput(
            f"{what}: output_names is {list(names)}; the module gives {len(outputs)} outputs "
            f"({', '.join(name for name, _ in outputs)}), and each needs a name of its own"
        )
    return names


def _distinct(sizes: Mapping[str, int], bounds: Mapping[str, AxisSpec]) -> dict[str, int]:
    """Sizes near the example's, none 0 or 1, and no two equal where their bounds allow it."""
    chosen: dict[str, int] = {}
    for name, size in sizes.items():
        most = bounds[name].most or _MOST
        candidates = itertools.chain(range(max(size, 2), most + 1), range(size, bounds[name].least - 1, -1))
        free = (candidate for candidate in candidates if candidate > 1 and candidate not in chosen.values())
        chosen[name] = next(free, size)
    return chosen


def _explained(error: UnsupportedModel, what: str) -> UnsupportedModel:
    """The exporter's error in the user's terms: his function, his line, the size that turned out fixed."""
    cause = error.__cause__
    text = str(cause.__cause__ or cause) if cause is not None else ""
    fixed = [line.strip(" -") for line in text.splitlines() if "specialized it to be a constant" in line]
    line = user_line(cause) if cause is not None else ""
    where = f" ({line})" if line else ""
    if fixed:
        return UnsupportedModel(
            f"{what}: the module takes one size only where another was promised{where}: {fixed[0]}; "
            "compute with the tensor's own shape, or leave the size out of `dynamic`"
        )
    return UnsupportedModel(f"{what}{where}: {error}")


def _kind(value: Any) -> str:
    """A value in messages: its type, with the article that English wants."""
    name = "None" if value is None else type(value).__name__
    return name if value is None else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
