"""What every source of models gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from model_repo.runtime.contract import EncoderSpec, Head

Kind = Literal["decoder", "encoder", "tensors"]
Pooling = Literal["mean", "cls", "max", "lasttoken", "mean_sqrt_len", "weightedmean"]


class Placeholder(NamedTuple):
    """What stands for an image in a prompt."""

    text: str
    token_id: int


@dataclass(frozen=True)
class DenseLayer:
    """A dense layer behind the pooling: `activation`, a class of torch.nn, of weight * x + bias."""

    weights: Path
    in_features: int
    out_features: int
    bias: bool
    activation: str


@dataclass(frozen=True)
class Source(ABC):
    """A model that was found and checked, but not loaded: opening one imports no torch."""

    name: str
    """Safe as a folder name and as a Triton model name."""
    kind: Kind
    folder: Path
    files: tuple[Path, ...]
    """Every file that decides what is built, for the manifest."""
    tokenizer_file: Path | None = None
    chat_template: str | None = None
    end_token_ids: tuple[int, ...] = ()
    max_length: int = 0
    """Longest sequence the model takes, in tokens; 0 for named tensors."""
    vocab_size: int = 0
    pooling: Pooling = "mean"
    """Encoders: what becomes the sentence's embedding."""
    dense: tuple[DenseLayer, ...] = ()
    """Encoders: layers between pooling and normalization."""
    normalize: bool = False
    """Encoders: whether embeddings are divided by their L2 norm."""
    head: Head = field(default=Head(), kw_only=True)
    """Encoders: what they give."""
    encoder: EncoderSpec | None = field(default=None, kw_only=True)
    """Decoders that attend to an encoder's output: that encoder. What its longest output is, the export says."""
    placeholder: Placeholder | None = field(default=None, kw_only=True)
    """Decoders whose prompts may hold images: what stands for one."""
    reference: str = field(default="", kw_only=True)
    """The MODEL that opens this very source again, where that is not what the user gave: a revision that moves."""

    def with_weights_in(self, folder: Path) -> Source:
        """The same source; what `load` gives need not hold its weights, but may map them from files of `folder`, named
        by the sha256 of their content, which it writes."""
        return self

    @abstractmethod
    def load(self) -> Any:
        """The model, in this process. Raises BadInput.

        Decoders and encoders: transformers' module in float32, in evaluation mode, without gradients. Named tensors:
        a `pipeline.export.tensor_model.TensorModel`.
        """
