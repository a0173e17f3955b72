"""Encoders: texts of different lengths as one batch; embeddings out, or logits of labels.

The batch is padded where it enters the graph. Engines with the feature PACKED_TEXTS compute the tokens alone, and give
a text the same bits alone and in company.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .contract import PACKED_TEXTS, EngineSpec
from .engine_files import EngineFiles
from .errors import BadInput
from .metrics import Metrics
from .tensor_session import tensor_session
from .tokenizer import Tokenizer

Rows = Sequence[Sequence[int]]
"""One list a text."""


class EncoderEngine:
    """One loaded encoder. Thread-safe: calls are independent."""

    def __init__(self, folder: Path, spec: EngineSpec, tokenizer: Tokenizer | None, threads: int) -> None:
        if spec.kind != "encoder":
            raise BadInput(f"engine {spec.name!r} is of kind {spec.kind}; an encoder is needed here")
        self.spec = spec
        self.tokenizer = tokenizer
        self.metrics = Metrics()
        self._session = tensor_session(folder, spec, threads)

    @classmethod
    def load(cls, folder: Path, *, threads: int | None = None, verify: bool = True) -> EncoderEngine:
        """The encoder in `folder`. Raises BadInput as `Engine.load` does."""
        files = EngineFiles.read(folder, verify)
        return cls(folder, files.spec, files.tokenizer, files.spec.threads if threads is None else threads)

    def embed(self, token_ids: Rows) -> npt.NDArray[np.float32]:
        """Embeddings float32 [texts, hidden] of token id lists, computed as one batch.

        Raises BadInput when there is no text, or one is empty, too long or has ids outside the vocabulary, and when
        the engine gives labels.
        """
        if self.spec.head.kind != "embedding":
            raise BadInput(
                f"engine {self.spec.name!r} is made for {self.spec.head.kind.replace('_', ' ')}; it gives logits of "
                f"{len(self.spec.head.labels)} labels, not embeddings"
            )
        return self._run(token_ids, None)

    def logits(self, token_ids: Rows, token_types: Rows | None = None) -> list[npt.NDArray[np.float32]]:
        """Logits of the head's labels for each text, all computed as one batch: float32 [labels] a text, or
        [tokens, labels] where tokens are labelled.

        `token_types`: 1 for tokens of the second text of a pair, by default 0; what the model does not tell apart is
        not looked at. Raises BadInput as `embed` does, and when the engine gives embeddings.
        """
        if self.spec.head.kind == "embedding":
            raise BadInput(f"engine {self.spec.name!r} gives embeddings; it has no labels")
        results = self._run(token_ids, token_types)
        if self.spec.head.kind == "token_classification":
            return [rows[: len(ids)] for rows, ids in zip(results, token_ids, strict=True)]
        return list(results)

    def warm_up(self) -> None:
        """Computes one short text."""
        self._run([[0] * min(8, self.spec.max_length)], None)

    def _run(self, token_ids: Rows, token_types: Rows | None) -> npt.NDArray[np.float32]:
        """The graph's output for one padded batch.

        A row of a product rounds otherwise alone than among others, so a text alone is given company without tokens
        where that costs nothing.
        """
        if not token_ids:
            raise BadInput("no text to embed; send at least one")
        for ids in token_ids:
            self._check(ids)
        longest = max(len(ids) for ids in token_ids)
        lonely = len(token_ids) == 1 and PACKED_TEXTS in self.spec.features
        input_ids = np.zeros((len(token_ids) + lonely, longest), np.int64)
        mask, types = np.zeros_like(input_ids), np.zeros_like(input_ids)
        for row, ids in enumerate(token_ids):
            input_ids[row, : len(ids)] = ids
            mask[row, : len(ids)] = 1
        for row, kinds in enumerate(token_types or ()):
            types[row, : len(token_ids[row])] = self._checked_types(kinds, token_ids[row])
        feeds = {"input_ids": input_ids, "attention_mask": mask, "token_type_ids": types}
        (output,) = self._session.run(
            [self.spec.head.output], {name: feeds[name] for name in self.spec.encoder_inputs}
        )
        self.metrics.count("steps")
        self.metrics.count("requests_stop", len(token_ids))
        self.metrics.count("prompt_tokens", sum(len(ids) for ids in token_ids))
        self.metrics.observe("batch_size", len(token_ids))
        return np.asarray(output[: len(token_ids)], np.float32)

    def _check(self, ids: Sequence[int]) -> None:
        if not 0 < len(ids) <= self.spec.max_length:
            raise BadInput(f"the text has {len(ids)} tokens; this encoder takes 1 to {self.spec.max_length}")
        if not 0 <= min(ids) <= max(ids) < self.spec.vocab_size:
            raise BadInput(f"a token id is outside the vocabulary; ids are 0 to {self.spec.vocab_size - 1}")

    @staticmethod
    def _checked_types(kinds: Sequence[int], ids: Sequence[int]) -> Sequence[int]:
        if len(kinds) != len(ids) or not set(kinds) <= {0, 1}:
            raise BadInput(
                f"the text has {len(ids)} tokens, but {len(kinds)} token types; each token needs one, 0 or 1"
            )
        return kinds
