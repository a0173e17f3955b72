"""Decoders of the Llama family with random weights, described as lowering would leave them.

A machine without ONNX has no lowered graph of its own; what a step costs does not depend on what the weights say.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model_repo.runtime.contract import (
    LOGITS,
    STEP_INPUTS,
    key_cache,
    key_cache_out,
    value_cache,
    value_cache_out,
)
from plugins.reference.rotary import rotary_tables
from plugins.tensorrt import names

from .description import NAMES, End, Graph, Node

POOL = ("num_blocks", "block_size")


@dataclass(frozen=True)
class Decoder:
    """Sizes of a model, by the names of transformers' LlamaConfig; embeddings are tied."""

    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5


SMOLLM2_135M = Decoder(30, 576, 1536, 9, 3, 64, 49152, 2048, 100000.0)
"""https://huggingface.co/HuggingFaceTB/SmolLM2-135M, with fewer positions."""

TINY = Decoder(2, 64, 96, 4, 2, 64, 199, 64)


def invented(model: Decoder, seed: int = 0, dtype: torch.dtype = torch.float16, workers: int = 376) -> Graph:
    """The lowered graph of `model`. Matrices are normal, of deviation 1 / sqrt(inputs), so that attention is not
    uniform and nothing grows out of a 16-bit type. workers: the plugin's attribute."""
    return _Writer(model, seed, dtype, workers).graph()


class _Writer:
    def __init__(self, model: Decoder, seed: int, dtype: torch.dtype, workers: int) -> None:
        self._model = model
        self._random = torch.Generator().manual_seed(seed)
        self._dtype = dtype
        self._workers = workers
        self._nodes: list[Node] = []
        self._weights: dict[str, Tensor] = {}

    def graph(self) -> Graph:
        model, name = self._model, NAMES[self._dtype]
        self._matrix("embedding", model.vocab_size, model.hidden_size, fan_in=model.hidden_size)
        cos, sin = rotary_tables(model.max_position_embeddings, model.head_dim, model.rope_theta)
        self._weights |= {"cos": cos, "sin": sin}
        rows = self._add("Gather", "rows", "embedding", "input_ids", axis=0)
        for layer in range(model.num_hidden_layers):
            rows = self._layer(layer, rows)
        rows = self._norm("norm", rows)
        product = self._add("Gemm", "logits.narrow", rows, "embedding", transB=1)
        self._add("Cast", LOGITS.name, product, to=1)
        heads, size = model.num_key_value_heads, model.head_dim
        layers = range(model.num_hidden_layers)
        pools = [(key_cache, value_cache), (key_cache_out, value_cache_out)]
        given, made = (
            [End(kind(layer), name, (*POOL, heads, size)) for layer in layers for kind in kinds]
            for kinds in pools
        )
        inputs = [End(spec.name, spec.dtype, tuple(spec.shape)) for spec in STEP_INPUTS]
        logits = End(LOGITS.name, "float32", ("selected", model.vocab_size))
        return Graph(tuple(self._nodes), (*inputs, *given), (logits, *made), self._weights)

    def _layer(self, layer: int, rows: str) -> str:
        model, at = self._model, f"layers.{layer}"
        columns = (model.num_attention_heads + 2 * model.num_key_value_heads) * model.head_dim
        heads = model.num_attention_heads * model.head_dim
        qkv = self._product(f"{at}.qkv", self._norm(f"{at}.norm", rows), model.hidden_size, columns)
        attended = self._attention(layer, qkv)
        if layer == model.num_hidden_layers - 1:  # of the last one's output only the wanted rows are needed
            attended = self._add("Gather", f"{at}.wanted", attended, "logits_indices", axis=0)
            rows = self._add("Gather", f"{at}.wanted_rows", rows, "logits_indices", axis=0)
        rows = self._add(
            "Add", f"{at}.mid", rows, self._product(f"{at}.o", attended, heads, model.hidden_size)
        )
        inner = model.intermediate_size
        gate_up = self._product(
            f"{at}.gate_up", self._norm(f"{at}.norm_2", rows), model.hidden_size, 2 * inner
        )
        gate, up = f"{at}.gate", f"{at}.up"
        self._nodes.append(
            Node("Split", (gate_up,), (gate, up), {"axis": -1, "num_outputs": 2}, f"{at}.split")
        )
        turned = self._add("Mul", f"{at}.silu", gate, self._add("Sigmoid", f"{at}.sigmoid", gate))
        gated = self._add("Mul", f"{at}.gated", turned, up)
        return self._add(
            "Add", f"{at}.out", rows, self._product(f"{at}.down", gated, inner, model.hidden_size)
        )

    def _attention(self, layer: int, qkv: str) -> str:
        model = self._model
        given = {
            "query": qkv,
            "key_cache": key_cache(layer),
            "value_cache": value_cache(layer),
            "cumulative_sequence_length": "cu_seqlens",
            "past_seqlens": "past_lens",
            "block_table": "block_table",
            "cos_cache": "cos",
            "sin_cache": "sin",
            "slot_mapping": "slot_mapping",
            "position_ids": "position_ids",
        }
        attributes = {
            "num_heads": model.num_attention_heads,
            "kv_num_heads": model.num_key_value_heads,
            "scale": model.head_dim**-0.5,
            "softcap": 0.0,
            "do_rotary": 1,
            "rotary_interleaved": 0,
            "local_window_size": -1,
            "workers": self._workers,
            names.INPUTS: ",".join(given),
            names.PLUGIN_VERSION: names.VERSION,
            names.PLUGIN_NAMESPACE: names.NAMESPACE,
        }
        output = f"layers.{layer}.attended"
        outputs = (output, key_cache_out(layer), value_cache_out(layer))
        self._nodes.append(
            Node(names.PAGED_ATTENTION, tuple(given.values()), outputs, attributes, output, names.DOMAIN)
        )
        return output

    def _norm(self, name: str, rows: str) -> str:
        self._weights[f"{name}.weight"] = torch.ones(self._model.hidden_size, dtype=self._dtype)
        epsilon = self._model.rms_norm_eps
        return self._add("RMSNormalization", f"{name}.out", rows, f"{name}.weight", axis=-1, epsilon=epsilon)

    def _product(self, name: str, rows: str, given: int, made: int) -> str:
        return self._add("MatMul", f"{name}.out", rows, self._matrix(name, given, made, fan_in=given))

    def _matrix(self, name: str, rows: int, columns: int, fan_in: int) -> str:
        matrix = torch.randn(rows, columns, generator=self._random) * fan_in**-0.5
        self._weights[name] = matrix.to(self._dtype)
        return name

    def _add(self, operator: str, output: str, *inputs: str, **attributes: float) -> str:
        self._nodes.append(Node(operator, inputs, (output,), attributes, output))
        return output
