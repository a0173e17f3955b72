"""Weights quantized block by block: each block sees what the quantized blocks before it give.

A graph is computed once from its inputs to its last linear layer, stage by stage (`cuts.py`), on all batches at a
time. What the layers of a stage multiply is summed up (`algorithms/statistics.py`), their weights are quantized, and
the next stage runs with what the quantized weights mean, so that later layers make up for the errors of earlier ones
(the sequential scheme of GPTQ, arXiv:2210.17323, section 4). Methods that move factors between channels look at a block
in floats first. In memory: the weights of one block and the activations that cross its border.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from model_repo.runtime.errors import BadInput

from .algorithms.awq import search_scale
from .algorithms.smoothquant import search_alpha
from .algorithms.statistics import Statistics, output_error
from .batches import Batch
from .cuts import Block, Stage, blocks, crossing
from .folding import fold_of
from .linear_layers import LinearLayer, linear_layers
from .methods import Method, method, rounded
from .schemes import Scheme, dequantize
from .slices import Array, Slice
from .walk_state import BlockResult, Results, WalkState

SAMPLE_ROWS = 512
"""Rows of a layer's inputs that are kept for the search of SmoothQuant's alpha."""
DYNAMIC_INT8 = Scheme("int8", "token")

Live = list[dict[ir.Value, Array]]
"""For each batch the values at hand."""


class Walked(NamedTuple):
    """What a walk decided."""

    quantized: Mapping[str, Any]  # Quantized by the weight's name, read from disk when asked for
    folded: dict[str, npt.NDArray[np.float32]]  # other weights that took up factors, as the graph holds them
    factored: frozenset[str]  # all weights that took up factors, quantized ones included
    errors: dict[str, float]  # of each layer by itself: mean squared error of its output over its mean square
    blocks: int
    resumed: int  # blocks that an earlier walk had done


class _Inputs(NamedTuple):
    """What is known of the tensor that a stage's layers multiply."""

    statistics: Statistics
    rows: npt.NDArray[np.float32]  # [at most SAMPLE_ROWS, in]


def walk(
    model: ir.Model,
    batches: Iterable[Batch],
    schemes: Mapping[str, Scheme],
    algorithm: str,
    folder: Path,
    key: str,
    *,
    input_scheme: Scheme = DYNAMIC_INT8,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Walked:
    """Quantizes the linear layers whose weights `schemes` names; the others stay floats.

    `model` as `activations.observable` gives it; it is given back as it was. `folder` holds the state: a walk that
    was ended goes on after the last block that is done if `key` (of graph, data and settings) is the same.
    `input_scheme`: how inputs will be quantized, for SmoothQuant. `progress` is told blocks done and all blocks.
    Raises BadInput: an unknown algorithm, a weight that is no linear layer's, activations that are not finite.
    """
    way = method(algorithm)
    layers = {layer.name: layer for layer in linear_layers(model)}
    for name in schemes:
        if name not in layers:
            raise BadInput(
                f"{name} is no weight of a linear layer; those are {', '.join(list(layers)[:5])}, ..."
            )
    state = WalkState(folder, key)
    found = blocks(model, [layers[name] for name in schemes])
    kept = {value: value.const_value for value in model.graph.initializers.values()}
    try:
        walker = _Walker(model, [batch.feeds for batch in batches], schemes, way, input_scheme)
        resumed = state.blocks_done
        walker.resume(found[:resumed], state)
        for block in found[resumed:]:
            progress(block.number, len(found))
            result = walker.block(block)
            state.save(block.number, result, walker.named())
            walker.forget(kept)
        progress(len(found), len(found))
    finally:
        for value, tensor in kept.items():
            value.const_value = tensor
    results = [state.block(number) for number in range(len(found))]
    return Walked(
        Results(state, {layer.name: block.number for block in found for layer in block.layers}),
        {name: array for result in results for name, array in result.folded.items() if name not in schemes},
        frozenset(name for result in results for name in result.folded),
        {name: error for result in results for name, error in result.errors.items()},
        len(found),
        resumed,
    )


class _Walker:
    """One walk: the values at hand, and the nodes that have been run."""

    def __init__(
        self,
        model: ir.Model,
        feeds: list[dict[str, Array]],
        schemes: Mapping[str, Scheme],
        way: Method,
        input_scheme: Scheme,
    ) -> None:
        self._model = model
        self._schemes = schemes
        self._way = way
        self._input_scheme = input_scheme
        inputs = {value.name: value for value in model.graph.inputs}
        self._feeds = [
            {inputs[name]: array for name, array in given.items() if name in inputs} for given in feeds
        ]
        self._live: Live = [dict(given) for given in self._feeds]
        self._done: list[ir.Node] = []

    def resume(self, done: list[Block], state: WalkState) -> None:
        """Takes up the walk after blocks that are done."""
        if not done:
            return
        self._done = [node for block in done for stage in block.stages for node in stage.nodes]
        values = {value.name: value for node in self._done for value in node.outputs}
        for own, saved in zip(self._live, state.live(), strict=True):
            own.update((values[name], array) for name, array in saved.items())
        # The products of the last stage come with the next block, on weights that are quantized.
        last = state.block(done[-1].number)
        self._give({layer.name: layer for layer in done[-1].layers}, last)

    def block(self, block: Block) -> BlockResult:
        """Quantizes one block."""
        folded: dict[str, npt.NDArray[np.float32]] = {}
        if self._way.smoothing != "none":
            names = self._smooth(block)
            weights = self._model.graph.initializers
            folded = {name: _numbers(weights[name]) for name in names}
        result = BlockResult({}, folded, {})
        for stage in block.stages:
            gathered = self._advance(stage)
            for layer in stage.layers:
                weight = layer.read()
                quantized = rounded(weight, self._schemes[layer.name], self._way, gathered.statistics)
                meant = dequantize(quantized)
                layer.write(meant)
                size = output_error(weight, gathered.statistics.hessian)
                error = output_error(meant - weight, gathered.statistics.hessian)
                result.quantized[layer.name] = quantized
                result.errors[layer.name] = error / size if size > 0 else 0.0
        return result

    def named(self) -> list[dict[str, Array]]:
        """The values that the rest of the graph reads, by name."""
        needed = crossing(self._model, self._done)
        return [
            {value.name or "": array for value, array in live.items() if value in needed}
            for live in self._live
        ]

    def forget(self, kept: Mapping[ir.Value, ir.TensorProtocol | None]) -> None:
        """Gives weights that no node ahead reads their numbers back, which lie on disk."""
        done = set(self._done)
        for value, tensor in kept.items():
            if value.const_value is not tensor and all(node in done for node, _ in value.uses()):
                value.const_value = tensor

    def _smooth(self, block: Block) -> list[str]:
        """Moves factors within a block; gives the names of changed weights."""
        started, done = [dict(live) for live in self._live], list(self._done)
        gathered = [(stage, self._advance(stage)) for stage in block.stages]
        self._live, self._done = started, done
        changed: list[str] = []
        for stage, inputs in gathered:
            fold = fold_of(self._model, stage.layers)
            if fold is not None:
                factors = self._factors(stage.layers, inputs)
                if factors is not None:
                    changed += fold.apply(factors)
        return changed

    def _factors(self, layers: tuple[LinearLayer, ...], inputs: _Inputs) -> npt.NDArray[np.float32] | None:
        """The best factors of the tensor that `layers` multiply; None where none are best."""
        weight = np.concatenate([layer.read() for layer in layers])
        scheme = min((self._schemes[layer.name] for layer in layers), key=lambda scheme: scheme.bits)
        known = inputs.statistics
        if self._way.smoothing == "awq":
            found = search_scale(weight, known.absolute_mean, known.hessian, scheme)
            return found.factors if found.alpha > 0 else None
        best = search_alpha(inputs.rows, weight, scheme, self._input_scheme, input_max=known.absolute_max)
        return best.factors if best.alpha is not None else None

    def _advance(self, stage: Stage) -> _Inputs:
        """Runs the stage's nodes on all batches; gives what is known of its layers' inputs."""
        after = [*self._done, *stage.nodes]
        needed = crossing(self._model, after) | {stage.inputs}
        wanted = [value for node in stage.nodes for value in node.outputs if value in needed]
        piece = Slice(self._model, stage.nodes, wanted) if wanted else None
        width = stage.layers[0].read().shape[1]
        statistics = Statistics(width)
        share = max(SAMPLE_ROWS // len(self._live), 1)
        rows: list[npt.NDArray[np.float32]] = []
        for live in self._live:
            if piece is not None:
                live.update(zip(wanted, piece.run(live), strict=True))
            for value in [value for value in live if value.producer() is not None and value not in needed]:
                del live[value]
            multiplied = live[stage.inputs].reshape(-1, width)
            statistics.add(multiplied, stage.layers[0].name)
            rows.append(multiplied[:: -(-len(multiplied) // share)].astype(np.float32))
        self._done = after
        return _Inputs(statistics, np.concatenate(rows))

    def _give(self, layers: Mapping[str, LinearLayer], result: BlockResult) -> None:
        for name, quantized in result.quantized.items():
            layers[name].write(dequantize(quantized))


def _numbers(value: ir.Value) -> npt.NDArray[np.float32]:
    assert value.const_value is not None
    return value.const_value.numpy().astype(np.float32)
