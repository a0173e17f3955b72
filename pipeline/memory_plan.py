"""What an engine will take of a device's memory, and what fits beside it, told before anything is built.

The decoder is made on torch's meta device from its config alone: its parameters are counted, the probe says what
each layer caches, and one full step is walked through without numbers while the bytes alive at once are followed.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from model_repo.runtime.contract import KV_DTYPE_BYTES
from model_repo.runtime.errors import BadInput

from .gpus import Gpu

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils._python_dispatch import TorchDispatchMode
    from transformers import PreTrainedModel

    from pipeline.export.probe import LayerSpec
    from pipeline.recipe import ExportRecipe, TargetRecipe
    from pipeline.sources import Source

UTILIZATION = 0.9
"""Share of the device's memory that is planned with: the rest is for the CUDA context, TensorRT, the split keys'
partial results and what lies between allocations."""

FLOAT_BYTES: Mapping[str, int] = {"float32": 4, "float16": 2}
"""Bytes of one element of what lies between the operators, and of weights."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one decoder's engine. `activation_bytes`: most that lies between operators at once, in a full step.

    `logits_bytes`: float32, a row for each sequence in flight. `kv_bytes_per_token`: over all layers.
    """

    model: str
    weights: int
    weight_bytes: int
    activation_bytes: int
    logits_bytes: int
    kv_bytes_per_token: int
    kv_dtype: str
    max_length: int
    max_batch: int
    token_budget: int
    block_size: int

    @property
    def fixed_bytes(self) -> int:
        """All but the cache."""
        return self.weight_bytes + self.activation_bytes + self.logits_bytes

    def fit(self, gpu: Gpu, utilization: float = UTILIZATION) -> Fit:
        """What the cache may take on `gpu`, and what that holds."""
        room = int(gpu.bytes * utilization) - self.fixed_bytes
        blocks = max(0, room) // (self.kv_bytes_per_token * self.block_size)
        return Fit(
            gpu=gpu.name,
            gpu_bytes=gpu.bytes,
            cache_bytes=room,
            num_blocks=blocks,
            tokens=blocks * self.block_size,
            longest_sequences=blocks // -(-self.max_length // self.block_size),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Fit:
    """A plan on one device. `cache_bytes`: left for the pools, negative by what is lacking without any.

    `longest_sequences`: sequences of the engine's max_length whose blocks all fit at once.
    """

    gpu: str
    gpu_bytes: int
    cache_bytes: int
    num_blocks: int
    tokens: int
    longest_sequences: int

    @property
    def fits(self) -> bool:
        """Whether one sequence of the engine's max_length can run."""
        return self.longest_sequences >= 1


def plan_memory(
    source: Source, export: ExportRecipe, target: TargetRecipe, dtype: str, kv_dtype: str
) -> MemoryPlan:
    """The plan of a decoder with weights and activations of `dtype` (of FLOAT_BYTES) and pools of `kv_dtype`.

    Takes seconds and no memory of the weights' size. Raises BadInput for models that are no decoders, for a dtype
    that is not known, and UnsupportedModel for decoders that the export would refuse.
    """
    from pipeline.export.experts import prepare_experts
    from pipeline.export.probe import probe

    kind = "a vision-language model" if source.placeholder else f"of kind {source.kind}"
    kind = "an encoder-decoder" if source.encoder else kind
    if source.kind != "decoder" or source.encoder or source.placeholder:
        raise BadInput(f"{source.name} is {kind}; memory is planned for decoders, whose caches grow")
    for given, known in ((dtype, FLOAT_BYTES), (kv_dtype, KV_DTYPE_BYTES)):
        if given not in known:
            raise BadInput(f"no memory plan for {given!r}; known are {', '.join(known)}")
    model = _without_weights(source)
    prepare_experts(model)
    layers = probe(model)
    max_length = export.resolved_max_length(source.max_length)
    elements = sum(parameter.numel() for parameter in model.parameters())
    scale = FLOAT_BYTES[dtype] / FLOAT_BYTES["float32"]
    return MemoryPlan(
        model=source.name,
        weights=elements,
        weight_bytes=elements * FLOAT_BYTES[dtype],
        activation_bytes=int(scale * _activation_bytes(model, layers, target)),
        logits_bytes=target.max_batch * source.vocab_size * FLOAT_BYTES["float32"],
        kv_bytes_per_token=sum(layer.kv(kv_dtype).bytes_per_token for layer in layers),
        kv_dtype=kv_dtype,
        max_length=max_length,
        max_batch=target.max_batch,
        token_budget=target.token_budget,
        block_size=target.block_size,
    )


def _without_weights(source: Source) -> PreTrainedModel:
    """The model of a checkpoint's config on the meta device: shapes, no numbers."""
    import torch
    import transformers

    auto: Any = transformers.AutoModelForCausalLM
    trust = bool(getattr(source, "trust_remote_code", False))
    try:
        config = transformers.AutoConfig.from_pretrained(
            source.folder, local_files_only=True, trust_remote_code=trust
        )
        with torch.device("meta"):
            model = auto.from_config(
                config, dtype=torch.float32, trust_remote_code=trust, attn_implementation="eager"
            )
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, AttributeError, TypeError) as error:
        raise BadInput(f"transformers cannot make a model of {source.folder}: {error}") from error
    skeleton: PreTrainedModel = model.eval().requires_grad_(False)
    return skeleton


def _activation_bytes(model: PreTrainedModel, layers: Sequence[LayerSpec], target: TargetRecipe) -> int:
    """Most bytes alive at once, in float32, besides weights, pools and logits, in a step of `token_budget` tokens."""
    import torch

    from pipeline.export.packed import PackedDecoder

    def meta(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.int32, device="meta")

    tokens, batch = target.token_budget, target.max_batch
    pools = [
        torch.zeros(2, target.block_size, layer.kv_heads, size, device="meta")
        for layer in layers
        for size in (layer.key_dim, layer.value_dim)
    ]
    step = (meta(tokens), meta(tokens), meta(batch + 1), meta(batch), meta(batch, 2), meta(tokens), meta(1))
    with torch.no_grad(), most_alive([*model.parameters(), *model.buffers(), *pools]) as watch:
        PackedDecoder(model, layers)(*step, pools)
    return watch.peak


@contextmanager
def most_alive(given: Sequence[Tensor]) -> Iterator[_Alive]:
    """Follows the bytes of all storages made inside the block, `given` ones not counted; see `peak` afterwards."""
    watch = _Alive(given)
    with watch.mode():
        yield watch


class _Alive:
    """Bytes of live storages, and the most there ever were. Views share their storage and count once."""

    def __init__(self, given: Sequence[Tensor]) -> None:
        self.now = 0
        self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in given}

    def made(self, tensor: Tensor) -> None:
        """Counts the tensor's storage, if it is new, until it is freed."""
        storage = tensor.untyped_storage()
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size

    def mode(self) -> TorchDispatchMode:
        """The dispatch mode that reports every tensor."""
        import torch
        from torch.utils._python_dispatch import TorchDispatchMode

        watch = self

        class Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
            def __torch_dispatch__(
                self, function: Any, types: Any, args: Any = (), kwargs: Any = None
            ) -> Any:
                results = function(*args, **(kwargs or {}))
                made = results if isinstance(results, (tuple, list)) else (results,)
                if function is torch.ops.slipway.paged_attention.default:
                    made = made[:1]  # an engine writes the pools in place
                for result in made:
                    if isinstance(result, torch.Tensor):
                        watch.made(result)
                return results

        mode: TorchDispatchMode = Mode()  # type: ignore[no-untyped-call]
        return mode
