"""Perplexity of a decoder that ModelOpt has quantized: `python bench/quantizers_modelopt.py CHECKPOINT DATA NAME ...`.

Runs in an environment of its own, without Slipway: torch, transformers and nvidia-modelopt. DATA is JSON,
{"calibration": [[token, ...], ...], "heldout": [...]}. Prints a line of JSON for each NAME: {NAME: perplexity}. Every
linear layer is quantized, the head included, which ModelOpt's presets leave out; the table of embeddings, tied to it,
has the head's rounded numbers.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM

INT8_STATIC = [
    ("*weight_quantizer", {"num_bits": 8, "axis": 0}),
    ("*input_quantizer", {"num_bits": 8, "axis": None}),
]
FP8 = [
    ("*weight_quantizer", {"num_bits": (4, 3), "axis": None}),
    ("*input_quantizer", {"num_bits": (4, 3), "axis": None}),
]
INT4 = [("*weight_quantizer", {"num_bits": 4, "block_sizes": {-1: 32, "type": "static"}})]
CONFIGS: dict[str, tuple[list[tuple[str, dict[str, Any]]], Any]] = {
    "float32": ([], None),
    "fp8 max": (FP8, "max"),
    "int8 static max": (INT8_STATIC, "max"),
    "int8 static smoothquant": (INT8_STATIC, "smoothquant"),
    "int4-32 max": (INT4, "max"),
    "int4-32 awq_lite": (INT4, {"method": "awq_lite", "alpha_step": 0.1}),
}
"""Quantizers and algorithm: those of the presets FP8_DEFAULT_CFG, INT8_DEFAULT_CFG, INT8_SMOOTHQUANT_CFG,
INT4_BLOCKWISE_WEIGHT_ONLY_CFG and INT4_AWQ_CFG, the last two with blocks of 32."""


def quantized(model: Any, name: str, calibration: list[list[int]]) -> Any:
    """A copy of the model with ModelOpt's quantizers."""
    import modelopt.torch.quantization as mtq

    model = copy.deepcopy(model)
    quantizers, algorithm = CONFIGS[name]
    if algorithm is None:
        return model
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    listed: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    listed += [{"quantizer_name": pattern, "cfg": settings} for pattern, settings in quantizers]
    listed += [{"quantizer_name": "*", "parent_class": "nn.Embedding", "enable": False}]

    def forward(module: Any) -> None:
        for ids in calibration:
            module(torch.tensor([ids]))

    model = mtq.quantize(model, {"quant_cfg": listed, "algorithm": algorithm}, forward)
    head = model.lm_head
    table = head.weight_quantizer(head.weight)
    scale = getattr(head.input_quantizer, "pre_quant_scale", None)
    if scale is not None:  # the head's inputs are multiplied by it, its weight was divided
        table = table * scale
    model.model.embed_tokens.weight.data = table.detach()
    return model


def perplexity(model: Any, windows: list[list[int]]) -> float:
    """exp(mean of -log p(token | the tokens before it in its window))."""
    nats, count = 0.0, 0
    for ids in windows:
        logits = model(torch.tensor([ids])).logits[0, :-1].double()
        targets = torch.tensor(ids[1:])
        nats += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
        count += len(targets)
    return math.exp(nats / count)


def main() -> None:
    checkpoint, data, *names = sys.argv[1:]
    given = json.loads(Path(data).read_text(encoding="utf-8"))
    model = LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    for name in names:
        with contextlib.redirect_stdout(sys.stderr), torch.inference_mode():
            found = perplexity(quantized(model, name, given["calibration"]), given["heldout"])
        print(json.dumps({name: found}), flush=True)


if __name__ == "__main__":
    main()
