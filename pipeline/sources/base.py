"""What every source of models gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from model_repo.runtime.contract import Head

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Kind = Literal["decoder", "encoder", "tensors"]
Pooling = Literal["mean", "cls"]


@dataclass(frozen=True)
class Source(ABC):
    """A model that was found and checked, but not loaded: opening one imports no torch."""

    name: str
    """Safe as a folder name and as a Triton model name."""
    kind: Kind
    folder: Path
    files: tuple[Path, ...]
    """Every file that decides what is built, for the manifest."""
    tokenizer_file: Path | None
    chat_template: str | None
    end_token_ids: tuple[int, ...]
    max_length: int
    """Longest sequence the model takes, in tokens."""
    vocab_size: int
    pooling: Pooling
    """Encoders: what becomes the sentence's embedding."""
    normalize: bool
    """Encoders: whether embeddings are divided by their L2 norm."""
    head: Head = field(default=Head(), kw_only=True)
    """Encoders: what they give."""

    @abstractmethod
    def load(self) -> PreTrainedModel:
        """The model in float32, in evaluation mode, without gradients. Raises BadInput."""
