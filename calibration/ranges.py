"""Ranges of a fused graph's activations: observers on every tensor that arithmetic reads, over the samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from model_repo.runtime.errors import BadInput
from model_repo.runtime.manifest import sha256_of

from .activations import POOL, GraphRun, observable, product_inputs
from .batches import Batches, Model
from .observers import METHODS, MinMax, Observer, Percentile, Slices, make_observer
from .samples import Samples
from .scales import Scales, TensorRange
from .schemes import Scheme

HEAD_AXIS = 1
"""Of the rows of a key or value pool, [tokens, kv_heads, dim]: each head has a range of its own."""

LOGIT_STRIDE = 8
"""Of a decoder's tokens every so manieth goes through the head, whose inputs are like each other."""


class Ruler(NamedTuple):
    """How ranges are chosen: one of `observers.METHODS`, for numbers stored in `scheme`."""

    method: str
    scheme: Scheme
    percentile: float = Percentile.DEFAULT

    def observer(self) -> Observer:
        """A new observer. Raises BadInput as `make_observer` does."""
        return make_observer(self.method, self.scheme, percentile=self.percentile)


def observe(
    graph: Path,
    model: Model,
    samples: Samples,
    ruler: Ruler,
    *,
    threads: int = 0,
    advanced: Callable[[int, int], None] = lambda done, total: None,
) -> Scales:
    """Ranges of what the graph's products read, and, by head, of the keys and values that a decoder stores.

    `advanced` is told how many batches are done, of how many. Raises BadInput for a method that the scheme has no
    use for, for a graph that holds nothing to observe or does not run, and for activations that are not finite, by the
    tensor's name.
    """
    assert ruler.method in METHODS
    opened = observable(graph)
    pools = [value.name or "" for value in opened.graph.inputs if POOL.fullmatch(value.name or "")]
    names = [*product_inputs(opened), *pools]
    if not names:
        raise BadInput(f"{graph} multiplies nothing by a weight; there is nothing to calibrate")
    observers = {name: _observer(name, ruler) for name in names}
    elements = dict.fromkeys(names, 0)
    batches = Batches(model, samples.items, logit_stride=LOGIT_STRIDE)
    run = GraphRun(graph, names, threads=threads)
    for done, batch in enumerate(batches, 1):
        for name, array in run(batch.feeds).items():
            try:
                observers[name].observe(array)
            except BadInput as error:
                raise BadInput(
                    f"the tensor {name!r}: {error}, in the samples {_listed(batch.samples)} of {samples.source}; the "
                    "model itself overflows on them"
                ) from error
            elements[name] += array.size
        advanced(done, len(batches))
    return Scales(
        graph_sha256=sha256_of(graph),
        data_sha256=samples.sha256,
        method=ruler.method,
        scheme=str(ruler.scheme),
        samples=len(samples.items),
        tokens=samples.tokens,
        tensors={name: _range(name, observers[name], elements[name]) for name in names},
    )


def _observer(name: str, ruler: Ruler) -> Observer:
    """Keys and values keep their whole range, whatever the method: a clipped key is wrong for every later token."""
    return Slices(HEAD_AXIS, MinMax) if POOL.fullmatch(name) else ruler.observer()


def _range(name: str, observer: Observer, elements: int) -> TensorRange:
    span = observer.range()
    axis = HEAD_AXIS if POOL.fullmatch(name) else None
    low, high = (tuple(end.reshape(-1).tolist()) for end in span)
    return TensorRange(low, high, elements, axis)


def _listed(places: tuple[int, ...]) -> str:
    return f"{places[0]} to {places[-1]}" if len(places) > 1 else str(places[0])
