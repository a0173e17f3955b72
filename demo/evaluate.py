"""Held-out bits per byte of the demo model and of a Kneser-Ney 5-gram on the same tokens.

    python -m demo.evaluate             # prints a table, writes demo/evaluation.json

Needs the training text (`python -m demo.corpus`), for the 5-gram's counts.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from demo.corpus import HELDOUT_FILE, ROOT, TRAIN_FILE
from demo.likelihood import bits_per_byte, model_nats
from demo.model_config import MAX_POSITIONS
from demo.ngram import KneserNey
from demo.tokenizer import encode_file

EVALUATION_FILE = ROOT / "demo" / "evaluation.json"
SLICE_TOKENS = 8192
"""Length of the beginning of the held-out text for which the figures are given too: enough for a test."""


@dataclass(frozen=True)
class Figures:
    """How well one model predicts one stretch of text."""

    tokens: int
    num_bytes: int
    nats: float

    def to_json(self) -> dict[str, float]:
        """Bits per byte, bits per token and perplexity per token."""
        per_token = self.nats / self.tokens
        return {
            "bits_per_byte": round(bits_per_byte(self.nats, self.num_bytes), 4),
            "bits_per_token": round(per_token / math.log(2.0), 4),
            "perplexity_per_token": round(math.exp(per_token), 2),
        }


def decoded_bytes(tokenizer: Tokenizer, ids: npt.NDArray[np.uint16]) -> int:
    """UTF-8 bytes of the text of `ids`; the marks of the ends of documents count nothing."""
    return len(tokenizer.decode(ids.tolist(), skip_special_tokens=True).encode("utf-8"))


def load_model(folder: Path) -> LlamaForCausalLM:
    """The model in a folder, its float16 weights held in float32, ready to be asked."""
    model: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


def evaluate(model_folder: Path) -> dict[str, Any]:
    """Figures of both models over the whole held-out text and over its first SLICE_TOKENS tokens."""
    tokenizer = Tokenizer.from_file(str(model_folder / "tokenizer.json"))
    heldout = encode_file(tokenizer, HELDOUT_FILE)
    train = encode_file(tokenizer, TRAIN_FILE)
    baseline = KneserNey(train.astype(np.int64), tokenizer.get_vocab_size())
    model = load_model(model_folder)
    report: dict[str, Any] = {"train_tokens": len(train)}
    for name, ids in (("heldout", heldout), ("slice", heldout[:SLICE_TOKENS])):
        size = decoded_bytes(tokenizer, ids)
        report[name] = {
            "tokens": len(ids),
            "bytes": size,
            "model": Figures(len(ids), size, model_nats(model, ids, context=512, stride=256)).to_json(),
            "kneser_ney_5gram": Figures(len(ids), size, baseline.nats(ids.astype(np.int64))).to_json(),
        }
    whole = report["heldout"]
    nats = model_nats(model, heldout, context=MAX_POSITIONS, stride=MAX_POSITIONS // 2)
    whole["model_all_positions"] = Figures(whole["tokens"], whole["bytes"], nats).to_json()
    return report


def print_table(report: dict[str, Any]) -> None:
    """The figures over the whole held-out text."""
    heldout = report["heldout"]
    table = Table(title=f"Held-out text: {heldout['tokens']:,} tokens, {heldout['bytes']:,} bytes")
    for heading in ("", "bits per byte", "bits per token", "perplexity per token"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, key in (
        ("demo model", "model"),
        ("... over 1024 tokens", "model_all_positions"),
        ("Kneser-Ney 5-gram", "kneser_ney_5gram"),
    ):
        table.add_row(name, *(str(value) for value in heldout[key].values()))
    Console().print(table)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=ROOT / "demo" / "model", help="folder of the model")
    parser.add_argument("--output", type=Path, default=EVALUATION_FILE, help="where the JSON goes")
    arguments = parser.parse_args()
    if not TRAIN_FILE.exists():
        sys.exit(f"no {TRAIN_FILE.relative_to(ROOT)}: make it with `python -m demo.corpus`")
    report = evaluate(arguments.model)
    arguments.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print_table(report)


if __name__ == "__main__":
    main()
