"""How well a language model predicts a stream of tokens, in nats and in bits per byte."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from transformers import LlamaForCausalLM

from demo.tokenizer import END_OF_TEXT_ID


def bits_per_byte(nats: float, num_bytes: int) -> float:
    """Total negative log-likelihood in nats over the UTF-8 bytes it covers."""
    return nats / math.log(2.0) / num_bytes


@torch.no_grad()
def model_nats(
    model: LlamaForCausalLM,
    ids: npt.NDArray[np.uint16],
    context: int,
    stride: int,
    windows_per_batch: int = 4,
    bfloat16: bool = False,
) -> float:
    """Negative log-likelihood in nats of every token of `ids` [tokens].

    The stream is read in windows of `context` tokens that begin every `stride` tokens; a window
    scores only what the one before has not, so a token is predicted from at least
    `context - stride` tokens (fewer at the very start, where END_OF_TEXT stands before the first).
    """
    stream = np.concatenate(([END_OF_TEXT_ID], ids)).astype(np.int64)
    num_tokens = len(ids)
    total = 0.0
    starts = list(range(0, max(num_tokens - context, 0) + stride, stride))
    starts = [start for start in starts if start == 0 or start + context - stride < num_tokens]
    for first in range(0, len(starts), windows_per_batch):
        batch = starts[first : first + windows_per_batch]
        inputs = torch.full((len(batch), context), END_OF_TEXT_ID, dtype=torch.int64)
        targets = torch.full((len(batch), context), -100, dtype=torch.int64)
        for row, start in enumerate(batch):
            length = min(context, num_tokens - start)
            inputs[row, :length] = torch.from_numpy(stream[start : start + length])
            scored = 0 if start == 0 else context - stride
            targets[row, scored:length] = torch.from_numpy(stream[start + 1 + scored : start + 1 + length])
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = model(input_ids=inputs, use_cache=False).logits
        total += torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), targets.flatten(), reduction="sum"
        ).item()
    return total
