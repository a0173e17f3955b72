"""The tensors of the served models: what apps send and get, and what the steps of an ensemble hand on.

Names and types follow the vLLM backend and TensorRT-LLM where they have the tensor. Standard library only:
the emitted configs are written from these tables, and the models read their requests by them.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Kind = Literal["STRING", "BOOL", "UINT8", "INT32", "UINT32", "UINT64", "FP32", "FP64"]


FILES = "files.json"
"""The manifest in each version folder: hashes of what emit wrote there."""


class Field(NamedTuple):
    """One tensor: Triton type, dims without the batch dimension (-1 is any size), meaning."""

    name: str
    kind: Kind
    dims: tuple[int, ...]
    meaning: str


DECODER_INPUTS: tuple[Field, ...] = (
    Field("text_input", "STRING", (1,), "the prompt; this or messages"),
    Field("messages", "STRING", (1,), 'chat as JSON: [{"role": "user", "content": "..."}, ...]'),
    Field("max_tokens", "INT32", (1,), "most tokens to generate"),
    Field("temperature", "FP32", (1,), "0 is greedy"),
    Field("top_k", "INT32", (1,), "sample among the k likeliest; 0 is off"),
    Field("top_p", "FP32", (1,), "sample among the likeliest that sum to p; 1 is off"),
    Field("min_p", "FP32", (1,), "drop tokens less likely than this times the likeliest; 0 is off"),
    Field("repetition_penalty", "FP32", (1,), "above 1 discourages tokens seen before; 1 is off"),
    Field("stop_words", "STRING", (-1,), "generation ends before any of these"),
    Field("seed", "UINT64", (1,), "the same seed gives the same tokens, whatever the company"),
    Field("ignore_eos", "BOOL", (1,), "go on to max_tokens (for benchmarks)"),
    Field("stream", "BOOL", (1,), "true: a response per step; false (default): one with the whole text"),
    Field(
        "sampling_parameters", "STRING", (1,), "JSON object of sampling settings; unknown keys are refused"
    ),
    Field("exclude_input_in_output", "BOOL", (1,), "false: the prompt comes first; default: as stream says"),
    Field("top_logprobs", "INT32", (1,), "log-probabilities of so many likeliest tokens at each place"),
    Field("return_log_probs", "BOOL", (1,), "log-probabilities of the chosen tokens"),
    Field("timeout_seconds", "FP32", (1,), "end with finish_reason timeout after this long"),
    Field("return_finish_reason", "BOOL", (1,), "accepted for vLLM clients: finish_reason always comes"),
    Field("return_cumulative_logprob", "BOOL", (1,), "log-probability of all tokens so far"),
    Field("return_logprobs", "BOOL", (1,), "the same as return_log_probs"),
    Field("return_num_input_tokens", "BOOL", (1,), "accepted for vLLM clients: the count always comes"),
    Field("return_num_output_tokens", "BOOL", (1,), "accepted for vLLM clients: the count always comes"),
)
"""What apps send to a decoder's ensemble and to its unary form. All optional but text_input or messages."""

DECODER_OUTPUTS: tuple[Field, ...] = (
    Field("text_output", "STRING", (1,), "the text since the last response"),
    Field("finish_reason", "STRING", (1,), "'' while it goes on; then stop, length, timeout or cancelled"),
    Field("num_input_tokens", "UINT32", (1,), "tokens of the prompt"),
    Field("num_output_tokens", "UINT32", (1,), "tokens since the last response"),
    Field("cumulative_logprob", "FP32", (1,), "log-probability of all tokens so far; 0 unless asked for"),
    Field("logprobs", "STRING", (1,), "JSON, one object a token; 'null' unless asked for"),
)
"""What apps get in each response."""

PREPROCESSED: tuple[Field, ...] = (
    Field("input_ids", "INT32", (-1,), "the prompt's tokens"),
    Field("request", "STRING", (1,), "the rest of the request, validated, as JSON"),
)
"""What preprocessing hands on."""

GENERATED: tuple[Field, ...] = (Field("piece", "UINT8", (-1,), "one response packed by `wire.pack`"),)
"""What the engine loop sends per response: one plain tensor, because each one costs time at every token."""

GONE = Field("gone", "UINT64", (-1,), "answer to a probe: streams whose client is gone")

ENCODER_INPUTS: tuple[Field, ...] = (Field("text_input", "STRING", (1,), "the text"),)
TOKENIZED: tuple[Field, ...] = (Field("input_ids", "INT32", (-1,), "tokens; rows are filled with -1"),)


def embedding(hidden_size: int) -> Field:
    """An encoder's output."""
    return Field("embedding", "FP32", (hidden_size,), "the text's embedding")
