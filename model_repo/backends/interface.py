"""The tensors of the served models: what apps send and get, and what the steps of an ensemble hand on.

Names and types follow the vLLM backend and TensorRT-LLM where they have the tensor. Standard library only:
the emitted configs are written from these tables, and the models read their requests by them.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Kind = Literal["STRING", "BOOL", "UINT8", "INT32", "INT64", "UINT32", "UINT64", "FP32", "FP64"]


FILES = "files.json"
"""The manifest in each version folder: hashes of what emit wrote there."""


ENCODER_FOLDER = "encoder"
"""Folder of an image encoder's files in its model's version folder."""


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

AUDIO = Field("audio", "FP32", (-1,), "the sound, one channel at the model's rate, between -1 and 1")
"""What apps send to models that hear; text_input may then be what the completion begins with."""

BEGINNING = Field(
    "decoder_text_input",
    "STRING",
    (1,),
    "what the completion begins with, such as a language, instead of the usual",
)
"""What apps may send to encoder-decoders of texts."""


IMAGES = Field(
    "image",
    "STRING",
    (-1,),
    "encoded images (JPEG, PNG, ...) or data URLs, in the order of their places in the prompt",
)
"""What apps may send to vision-language models, beside text_input or messages."""


def pixel_values(shape: tuple[int, int, int]) -> Field:
    """What preprocessing hands on to the image encoder: channels, height and width of each image."""
    return Field("pixel_values", "FP32", (-1, *shape), "the images, prepared; none is [0, ...]")


def prompt_embeds(hidden_size: int) -> Field:
    """What the image encoder hands on to the engine loop."""
    return Field(
        "prompt_embeds",
        "FP32",
        (-1, hidden_size),
        "a row for each placeholder in input_ids; none is [0, ...]",
    )


def encoder_input(data_type: Literal["INT64", "FP32"], dims: tuple[int, ...]) -> Field:
    """What preprocessing hands on to an encoder-decoder, beside `PREPROCESSED`: the tokens of the text, or features."""
    return Field("encoder_input", data_type, dims, "the encoder's input")


GENERATED: tuple[Field, ...] = (Field("piece", "UINT8", (-1,), "one response packed by `wire.pack`"),)
"""What the engine loop sends per response: one plain tensor, because each one costs time at every token."""

GONE = Field("gone", "UINT64", (-1,), "answer to a probe: streams whose client is gone")

ENCODER_INPUTS: tuple[Field, ...] = (Field("text_input", "STRING", (1,), "the text"),)
TEXT_PAIR = Field(
    "text_pair", "STRING", (1,), "a second text, judged together with the first (rerankers: the passage)"
)
"""Optional, and taken by classifiers of whole texts only."""

TOKENIZED: tuple[Field, ...] = (Field("input_ids", "INT32", (-1,), "tokens; rows are filled with -1"),)
TOKEN_TYPES = Field(
    "token_type_ids", "INT32", (-1,), "1 for tokens of the second text; rows are filled with -1"
)
OFFSETS = Field("offsets", "INT32", (-1, 2), "characters [start, end) of each token; rows are filled with -1")

LABEL = Field("label", "STRING", (1,), "the label with the highest score")
SCORE = Field("score", "FP32", (1,), "its score; of a reranker, or any model with one label, the only output")
ENTITIES = Field(
    "entities",
    "STRING",
    (1,),
    'JSON: [{"label": ..., "score": ..., "start": ..., "end": ..., "text": ...}, ...]',
)


def embedding(hidden_size: int) -> Field:
    """An encoder's output without a head."""
    return Field("embedding", "FP32", (hidden_size,), "the text's embedding")


def logits(num_labels: int, per_token: bool) -> Field:
    """What an encoder with a head hands on to the labels' step."""
    dims = (-1, num_labels) if per_token else (num_labels,)
    return Field("logits", "FP32", dims, "logits of the labels; rows of tokens are filled with NaN")


def scores(num_labels: int) -> Field:
    """The scores of all labels."""
    return Field("scores", "FP32", (num_labels,), "the scores of all labels, in the model's order")


def label_outputs(num_labels: int, per_token: bool) -> tuple[Field, ...]:
    """What apps get from an encoder with a head."""
    if per_token:
        return (ENTITIES,)
    return (SCORE,) if num_labels == 1 else (LABEL, SCORE, scores(num_labels))


IMAGE = Field("image", "STRING", (1,), "an encoded image (JPEG, PNG, ...), or a data URL with one")
TOP_K = Field("top_k", "INT32", (1,), "classifiers: so many of the best labels; 1 by default")
THRESHOLD = Field("threshold", "FP32", (1,), "detectors: objects with a higher score; 0.5 by default")
"""Optional; one value for all images of a request."""

PIXEL_MASK = "pixel_mask"
"""The engine's name for the input that says which pixels are the image's."""
IMAGE_SIZE = Field(
    "image_size", "INT32", (2,), "height and width of the image within pixel_values; without it, all is image"
)
ORIGINAL_SIZE = Field("original_size", "INT32", (2,), "height and width of the image as it was sent")

LABELS = Field("label", "STRING", (-1,), "the top_k labels with the highest scores, the best first")
LABEL_SCORES = Field("score", "FP32", (-1,), "their scores")
RANKED = (LABELS.name, LABEL_SCORES.name, "scores")
"""What apps get from a classifier; `scores` as above."""
DETECTED: tuple[Field, ...] = (
    Field("num_objects", "INT32", (1,), "objects found in the image; the rows behind them fill up"),
    Field(
        "boxes", "FP32", (-1, 4), "left, top, right, bottom in pixels of the image as it was sent; else NaN"
    ),
    Field("scores", "FP32", (-1,), "the objects' scores; else NaN"),
    Field("labels", "STRING", (-1,), "the objects' labels; else empty"),
)
"""What apps get from a detector."""
