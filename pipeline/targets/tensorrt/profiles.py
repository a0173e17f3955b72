"""Optimization profiles, by name, from an engine's limits: the shapes that an engine is tuned for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from model_repo.runtime.errors import BadInput

if TYPE_CHECKING:
    import onnx_ir as ir

    from model_repo.runtime.contract import EngineSpec, Limits
    from pipeline.recipe import TargetRecipe

USUAL_TEXT = 128
"""Tokens of a text that engines of encoders are tuned for."""

DECODE_BATCHES = (1, 8)
"""Sequences of decode steps that TensorRT tunes kernels for beside the most: its builder times them at one size of a
profile, and products of one row, of few and of many run fastest on different kernels. TensorRT-RTX chooses kernels
where the engine runs, for the shapes that come."""

Shape = tuple[int, ...]
Dims = Sequence[int | str]
"""Fixed sizes, and names of sizes known only at run time."""


class Sizes(NamedTuple):
    """A size known only at run time: the least, the one to tune for, and the most."""

    least: int
    usual: int
    most: int


class Shapes(NamedTuple):
    """The shapes of one input in a profile."""

    least: Shape
    usual: Shape
    most: Shape


@dataclass(frozen=True)
class Profile:
    """One kind of step. `shapes`: of each input, in the order of the network."""

    name: str
    shapes: Mapping[str, Shapes]


def profiles_of(model: ir.Model, spec: EngineSpec, recipe: TargetRecipe) -> tuple[Profile, ...]:
    """The profiles of an engine of the lowered graph `model`: `decode` and `prefill` of a decoder, and `mixed` where
    its cache is paged; else `any`.

    Raises BadInput for a size that has no bound, with the option that gives it one.
    """
    from model_repo.runtime.linear_cache import LINEAR_CACHE  # the builder's process needs none of these
    from pipeline.fuse.matching import dims

    inputs = {value.name or "": dims(value) or () for value in model.graph.inputs}
    if spec.kind == "decoder":
        limits, batches = spec.decoder_limits, recipe.builder.decode_batches
        if LINEAR_CACHE not in spec.features:
            return paged_profiles(inputs, limits, batches or DECODE_BATCHES)
        chunk = min(limits.token_budget, limits.max_length)
        return linear_profiles(inputs, limits.max_batch, chunk, batches)
    if spec.kind == "encoder":
        texts = Sizes(1, recipe.max_batch, recipe.max_batch)
        length = Sizes(1, min(USUAL_TEXT, spec.max_length), spec.max_length)
        return (profile("any", inputs, {"batch": texts, "length": length}),)
    rows = spec.inputs[0].shape[0] if spec.batched else None
    sizes: dict[str, Sizes] = {}
    for axis in spec.axes:
        most = recipe.largest_sizes.get(axis.name, recipe.max_batch if axis.name == rows else axis.most)
        if most is None:
            raise BadInput(
                f"the size {axis.name!r} of the model's inputs has no bound, and an engine is built for a range of "
                f"sizes; give --max-size {axis.name}=SIZE"
            )
        if most < axis.least or (axis.most is not None and most > axis.most):
            raise BadInput(
                f"the size {axis.name!r} shall be at most {most}; the model takes {axis.least} to {axis.most or 'any'}"
            )
        sizes[axis.name] = Sizes(axis.least, most, most)
    return (profile("any", inputs, sizes),)


def decode_names(batches: Sequence[int], most: int) -> dict[str, int]:
    """Names of the profiles of decode steps, with the most sequences of each, the narrowest first: `decode` is the
    last and holds every step, `decode_8` those of up to 8."""
    return {**{f"decode_{batch}": batch for batch in sorted({*batches}) if batch < most}, "decode": most}


def linear_profiles(
    inputs: Mapping[str, Dims], max_batch: int, token_budget: int, batches: Sequence[int] = ()
) -> tuple[Profile, ...]:
    """`decode` (one token of each of up to max_batch slots) and `prefill` (up to token_budget tokens of one slot).

    `inputs` are those of a graph under the linear contract, whose sizes are called batch, length and selected.
    Both in one engine get attention kernels of their own. batches: see `decode_names`.
    """
    one, chunk = Sizes(1, 1, 1), Sizes(1, token_budget, token_budget)
    decode = []
    for name, most in decode_names(batches, max_batch).items():
        slots = Sizes(1, most, most)
        decode.append(profile(name, inputs, {"batch": slots, "length": one, "selected": slots}))
    return (*decode, profile("prefill", inputs, {"batch": one, "length": chunk, "selected": one}))


def paged_profiles(
    inputs: Mapping[str, Dims], limits: Limits, batches: Sequence[int] = ()
) -> tuple[Profile, ...]:
    """`decode` (one token of each of up to max_batch sequences), `prefill` (up to token_budget tokens of one), and
    `mixed` (chunks and single tokens of up to max_batch sequences, token_budget in all).

    `inputs` are those of a graph under the paged contract. Pools have up to num_blocks blocks, of one size. batches:
    see `decode_names`.
    """
    most, width = limits.max_batch, -(-limits.max_length // limits.block_size)
    pools = {
        "num_blocks": Sizes(1, limits.num_blocks, limits.num_blocks),
        "block_size": Sizes(limits.block_size, limits.block_size, limits.block_size),
        "max_blocks": Sizes(1, width, width),
    }

    def sizes(sequences: int, tokens: int) -> dict[str, Sizes]:
        rows = Sizes(1, sequences, sequences)
        edges = Sizes(2, sequences + 1, sequences + 1)
        return {
            **pools,
            "batch": rows,
            "batch + 1": edges,
            "selected": rows,
            "tokens": Sizes(1, tokens, tokens),
        }

    chunk = min(limits.token_budget, limits.max_length)
    decode = decode_names(batches, most).items()
    return (
        *(profile(name, inputs, sizes(rows, rows)) for name, rows in decode),
        profile("prefill", inputs, sizes(1, chunk)),
        profile("mixed", inputs, sizes(most, max(most, limits.token_budget))),
    )


def profile(name: str, inputs: Mapping[str, Dims], sizes: Mapping[str, Sizes]) -> Profile:
    """A profile from the range of each named size. Raises BadInput for a size without one."""
    for given, shape in inputs.items():
        for size in shape:
            if isinstance(size, str) and size not in sizes:
                raise BadInput(
                    f"input {given!r} has the size {size!r}, which profile {name!r} says nothing of; it knows "
                    f"{', '.join(sizes)}"
                )
    return Profile(name, {given: _shapes(shape, sizes) for given, shape in inputs.items()})


def _shapes(shape: Dims, sizes: Mapping[str, Sizes]) -> Shapes:
    ranges = [sizes[size] if isinstance(size, str) else Sizes(size, size, size) for size in shape]
    return Shapes(
        tuple(size.least for size in ranges),
        tuple(size.usual for size in ranges),
        tuple(size.most for size in ranges),
    )
