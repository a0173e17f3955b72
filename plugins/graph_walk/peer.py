"""What transformers' `generate` does of the same work on the same device."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from .invented import Decoder


def generate_rates(
    model: Decoder, streams: Sequence[int], prompt: int, new_tokens: int, device: torch.device
) -> Iterator[tuple[int, float | str]]:
    """Generated tokens a second of each number of streams, or why there is none.

    A Llama of these sizes with random weights in float16, attention by sdpa, the default cache, prompts of equal
    length, greedy, no token ends a stream; in seconds from the prompts to the last token, as `Loop.timed` counts.
    """
    try:
        import transformers
    except ImportError:
        yield from ((count, "transformers is not installed") for count in streams)
        return
    network = _network(transformers, model, device)
    _seconds(network, model, 1, prompt, 4, device)  # kernels are loaded as they are first used
    for count in streams:
        try:
            taken = _seconds(network, model, count, prompt, new_tokens, device)
        except torch.OutOfMemoryError:
            yield count, "out of memory"
        else:
            yield count, count * new_tokens / taken


def _network(transformers: Any, model: Decoder, device: torch.device) -> Any:
    config = transformers.LlamaConfig(
        num_hidden_layers=model.num_hidden_layers,
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_attention_heads=model.num_attention_heads,
        num_key_value_heads=model.num_key_value_heads,
        head_dim=model.head_dim,
        vocab_size=model.vocab_size,
        max_position_embeddings=model.max_position_embeddings,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
        eos_token_id=None,
    )
    with device:
        network = transformers.LlamaForCausalLM(config)
    return network.to(torch.float16).eval()


def _seconds(
    network: Any, model: Decoder, count: int, prompt: int, new_tokens: int, device: torch.device
) -> float:
    random = torch.Generator().manual_seed(count)
    ids = torch.randint(0, model.vocab_size, (count, prompt), generator=random).to(device)
    begun = time.perf_counter()
    with torch.inference_mode():
        made = network.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=0,
        )
        last = made[:, -1].tolist()  # waits for the device
    taken = time.perf_counter() - begun
    if made.shape[1] != prompt + new_tokens or len(last) != count:
        raise RuntimeError(
            f"generate gave {tuple(made.shape)}, not {count} rows of {prompt + new_tokens} tokens"
        )
    return taken
