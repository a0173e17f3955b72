"""The contracts of decoders, encoders and other models: what a compiled engine takes and gives, by name, dtype, shape.

Export, plugins, runtime and tests all read the contract from here. One decoder graph serves prefill and
decode: the tokens of all sequences of a step lie packed, sequence after sequence. Standard library and
numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .cross_attention import CROSS as CROSS
from .cross_attention import CROSS_INPUTS as CROSS_INPUTS
from .cross_attention import EncoderSpec as EncoderSpec
from .errors import BadInput
from .image_steps import ImageSteps
from .prompt_embeds import ImageEncoderSpec as ImageEncoderSpec
from .prompt_embeds import embed_inputs
from .tensor_spec import AxisSpec as AxisSpec
from .tensor_spec import TensorSpec as TensorSpec

STEP_INPUTS: tuple[TensorSpec, ...] = (
    TensorSpec("input_ids", "int32", ("tokens",), "the step's tokens, sequence after sequence"),
    TensorSpec("position_ids", "int32", ("tokens",), "position of each token in its sequence"),
    TensorSpec(
        "cu_seqlens",
        "int32",
        ("batch + 1",),
        "start of each sequence in `tokens`; the last element is at most tokens: rows beyond it are padding "
        "up to a bucket, slot -1, never read",
    ),
    TensorSpec("past_lens", "int32", ("batch",), "tokens in the cache before this step"),
    TensorSpec(
        "block_table", "int32", ("batch", "max_blocks"), "cache blocks of each sequence, -1 beyond its end"
    ),
    TensorSpec(
        "slot_mapping",
        "int32",
        ("tokens",),
        "block * block_size + offset where each new key/value goes; -1 writes nothing",
    ),
    TensorSpec(
        "logits_indices", "int32", ("selected",), "rows of `tokens` whose logits are wanted, at least one"
    ),
)
LOGITS = TensorSpec("logits", "float32", ("selected", "vocab"), "logits of the selected rows")


def key_cache(layer: int) -> str:
    """Name of layer `layer`'s key pool, [num_blocks, block_size, kv_heads, key_dim]."""
    return f"key_cache_{layer}"


def value_cache(layer: int) -> str:
    """Name of layer `layer`'s value pool, [num_blocks, block_size, kv_heads, value_dim]."""
    return f"value_cache_{layer}"


def key_cache_out(layer: int) -> str:
    """Name of the key pool as an output (exported graphs; engines write in place and drop it)."""
    return f"key_cache_out_{layer}"


def value_cache_out(layer: int) -> str:
    """Name of the value pool as an output (exported graphs; engines write in place and drop it)."""
    return f"value_cache_out_{layer}"


@dataclass(frozen=True)
class KVSpec:
    """What one layer keeps for each token: `group` shares a block table; `window` 0 means the whole past."""

    group: int
    kv_heads: int
    key_dim: int
    value_dim: int
    window: int
    dtype: str

    @property
    def bytes_per_token(self) -> int:
        """Bytes of keys and values that one token takes in this layer."""
        return self.kv_heads * (self.key_dim + self.value_dim) * KV_DTYPE_BYTES[self.dtype]


KV_DTYPE_BYTES: Mapping[str, int] = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "fp8": 1}
"""Pool dtypes that engines have today, with the bytes of one element; fp8 is ONNX's float8e4m3fn."""


def has_cross_attention(kv: Sequence[KVSpec]) -> bool:
    """Whether some of these layers attend to an encoder's output."""
    return any(spec.group == CROSS for spec in kv)


def decoder_inputs(kv: Sequence[KVSpec], embed_size: int | None = None) -> tuple[TensorSpec, ...]:
    """All inputs of a decoder with these layers, in graph order: step tensors, then two pools a layer.

    A layer of an encoder-decoder that attends twice counts as two here: one of group 0 and one of group CROSS.
    `embed_size`: elements of a token's embedding, where prompts may hold images.
    """
    pools: list[TensorSpec] = []
    for layer, spec in enumerate(kv):
        head = ("num_blocks_1" if spec.group == CROSS else "num_blocks", "block_size", spec.kv_heads)
        pools.append(TensorSpec(key_cache(layer), spec.dtype, (*head, spec.key_dim), f"layer {layer}'s keys"))
        pools.append(
            TensorSpec(value_cache(layer), spec.dtype, (*head, spec.value_dim), f"layer {layer}'s values")
        )
    cross = CROSS_INPUTS if has_cross_attention(kv) else ()
    embeds = () if embed_size is None else embed_inputs(embed_size)
    return (*STEP_INPUTS, *cross, *embeds, *pools)


MIN_TOKEN_BUDGET = 3


@dataclass(frozen=True)
class Limits:
    """What an engine can hold: tokens, sequences, blocks. `max_length` counts prompt and completion.

    `num_cross_blocks`: blocks of the group CROSS, 0 without cross-attention.
    """

    max_batch: int
    token_budget: int
    max_length: int
    block_size: int
    num_blocks: int
    num_cross_blocks: int = 0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, int) or value < (name != "num_cross_blocks"):
                raise BadInput(f"limit {name} is {value!r}; it must be a positive whole number")
        if self.token_budget < MIN_TOKEN_BUDGET:
            raise BadInput(
                f"limit token_budget is {self.token_budget}; it must be at least {MIN_TOKEN_BUDGET}, so that a "
                "prompt can be cut into chunks of at least two tokens"
            )
        if self.num_blocks * self.block_size < self.max_length:
            raise BadInput(
                f"{self.num_blocks} blocks of {self.block_size} tokens cannot hold one sequence of "
                f"{self.max_length} tokens; raise num_blocks (or kv_cache_bytes) or lower max_length"
            )

    @property
    def max_blocks(self) -> int:
        """Blocks that the longest sequence takes: the width of the block table."""
        return -(-self.max_length // self.block_size)


PACKED_TEXTS = "packed_texts"
"""Feature of an encoder's engine: padding is not computed (`slipway::PackedLayout` in its graph)."""

CONVOLUTIONS = "convolutions"
"""Feature of an engine: its graph has convolutions, which get this machine's blocked layout when it is loaded."""

ROWS_ALONE = "rows_alone"
"""Feature of a decoder's engine: all of its products are `slipway::QuantizedMatMul`, which gives a row the same bits
alone and in company, and reads weights as they lie in the files."""

HeadKind = Literal["embedding", "sequence_classification", "token_classification"]
Activation = Literal["none", "softmax", "sigmoid"]


@dataclass(frozen=True)
class Head:
    """What an encoder's graph ends in: pooled embeddings, or logits of `labels` for each text or each token.

    `activation` makes scores of logits: softmax where one label holds, sigmoid where each may, none where the
    logits themselves are the scores (regression; rerankers, which have one label).
    """

    kind: HeadKind = "embedding"
    labels: tuple[str, ...] = ()
    activation: Activation = "none"

    @property
    def output(self) -> str:
        """The graph's output: `embedding` [batch, hidden], or `logits` [batch, labels] or [batch, length, labels]."""
        return "embedding" if self.kind == "embedding" else "logits"

    @property
    def takes_pairs(self) -> bool:
        """Whether a text may come with a second one, which it is judged together with."""
        return self.kind == "sequence_classification"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Head:
        """The inverse of `dataclasses.asdict`. Raises TypeError when fields are missing or unknown."""
        return cls(**{**data, "labels": tuple(data.get("labels", ()))})


def typed(data: Mapping[str, Any]) -> dict[str, Any]:
    """`data` with those fields as their types that an engine and its export have in common; a copy.

    Raises TypeError or KeyError when a field does not fit.
    """
    read: dict[str, Callable[[Any], Any]] = {
        "kv": lambda specs: tuple(KVSpec(**spec) for spec in specs),
        "end_token_ids": tuple,
        "features": tuple,
        "encoder_inputs": tuple,
        "encoder": lambda encoder: EncoderSpec.from_dict(encoder) if encoder else None,
        "image_encoder": lambda encoder: ImageEncoderSpec.from_dict(encoder) if encoder else None,
        "head": Head.from_dict,
        "images": lambda steps: ImageSteps.from_dict(steps) if steps else None,
        "inputs": lambda specs: tuple(map(TensorSpec.from_dict, specs)),
        "outputs": lambda specs: tuple(map(TensorSpec.from_dict, specs)),
        "axes": lambda axes: tuple(AxisSpec(**axis) for axis in axes),
    }
    return {name: read[name](value) if name in read else value for name, value in data.items()}


@dataclass(frozen=True)
class EngineSpec:
    """The `engine` section of a compiled engine's manifest: all that the runtime needs to know to run it.

    `graph` and `plugin` are paths relative to the engine's folder. `threads` 0 means all cores. `features`
    names what the engine has beyond the plain contract (PACKED_TEXTS, CONVOLUTIONS, ROWS_ALONE). Decoders have `kv` and
    `limits`; encoders have `head`, `max_length` in tokens, and, where they give embeddings, `hidden_size`. Decoders
    whose layers attend to an encoder's output have it as `encoder`, those whose prompts may hold images
    `image_encoder`.

    Engines of kind `tensors` take and give named tensors: `inputs` and `outputs`, whose dimensions are sizes,
    names of `axes`, or (outputs) other words for sizes that the values decide. `batched`: axis 0 of all of them
    is the same one, and a row does not depend on the others, so that requests may be joined. They have no
    tokens: `vocab_size` and `max_length` are 0. Those that take images may have `images`, the steps around them.
    """

    kind: Literal["decoder", "encoder", "tensors"]
    name: str
    target: str
    precision: str
    graph: str
    plugin: str | None
    vocab_size: int
    max_length: int
    end_token_ids: tuple[int, ...] = ()
    features: tuple[str, ...] = ()
    kv: tuple[KVSpec, ...] = ()
    limits: Limits | None = None
    hidden_size: int | None = None
    encoder_inputs: tuple[str, ...] = ()
    threads: int = 0
    head: Head = Head()
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    axes: tuple[AxisSpec, ...] = ()
    batched: bool = False
    images: ImageSteps | None = None
    encoder: EncoderSpec | None = None
    image_encoder: ImageEncoderSpec | None = None

    def __post_init__(self) -> None:
        if self.encoder is None or self.limits is None:
            return
        cross_tokens = self.limits.num_cross_blocks * self.limits.block_size
        if cross_tokens < self.encoder.max_positions:
            raise BadInput(
                f"{self.limits.num_cross_blocks} blocks of {self.limits.block_size} cannot hold the "
                f"{self.encoder.max_positions} positions of the encoder's longest output; raise kv_cache_bytes"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EngineSpec:
        """The inverse of `to_dict`. Raises BadInput when fields are missing or unknown."""
        try:
            values = typed(data)
            values["limits"] = Limits(**values["limits"]) if values.get("limits") else None
            return cls(**values)
        except (TypeError, KeyError) as error:
            raise BadInput(
                f"the engine section of the manifest does not fit this version: {error}; build it again"
            ) from error

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of cache that one token takes over all layers."""
        return sum(spec.bytes_per_token for spec in self.kv)

    @property
    def decoder_limits(self) -> Limits:
        """The limits of a decoder. Raises BadInput for an encoder."""
        if self.limits is None:
            raise BadInput(f"engine {self.name!r} is of kind {self.kind}; a decoder is needed here")
        return self.limits


Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True)
class StepTensors:
    """The step inputs of one engine call as numpy int32 arrays, named and shaped as in `STEP_INPUTS`."""

    input_ids: Int32Array
    position_ids: Int32Array
    cu_seqlens: Int32Array
    past_lens: Int32Array
    block_table: Int32Array
    slot_mapping: Int32Array
    logits_indices: Int32Array


@dataclass(frozen=True)
class CrossStepTensors(StepTensors):
    """The step inputs of a decoder with cross-attention: also those in `CROSS_INPUTS`."""

    cu_seqlens_1: Int32Array
    past_lens_1: Int32Array
    block_table_1: Int32Array
    slot_mapping_1: Int32Array


@dataclass(frozen=True)
class EmbedStepTensors(StepTensors):
    """The step inputs of a decoder whose prompts may hold images: also `prompt_embeds.embed_inputs`."""

    prompt_embeds: npt.NDArray[np.float32]
    embed_index: Int32Array
