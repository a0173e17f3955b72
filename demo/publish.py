"""Makes demo/model, the folder that is committed, of the best weights of a training run.

    python -m demo.publish

Writes config.json, generation_config.json, model.safetensors (float16), the tokenizer's files, then
evaluates what was written and makes the model card of the figures.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaForCausalLM

from demo.card import write_card
from demo.corpus import ROOT
from demo.evaluate import EVALUATION_FILE, evaluate, print_table
from demo.model_config import demo_config
from demo.tokenizer import END_OF_TEXT_ID
from demo.train import RUN_FOLDER

MODEL_FOLDER = ROOT / "demo" / "model"
SUGGESTED_SAMPLING = {"temperature": 0.65, "top_k": 40, "repetition_penalty": 1.15}


def write_model(weights: dict[str, torch.Tensor], run_folder: Path, destination: Path) -> None:
    """Write the model folder without its card. The float32 `weights` become float16 here."""
    destination.mkdir(parents=True, exist_ok=True)
    model = LlamaForCausalLM(demo_config())
    model.load_state_dict(weights)
    model.half()
    model.generation_config = GenerationConfig(
        eos_token_id=END_OF_TEXT_ID,
        pad_token_id=END_OF_TEXT_ID,
        do_sample=True,
        **SUGGESTED_SAMPLING,
    )
    model.save_pretrained(destination)
    (destination / "model.safetensors").chmod(0o644)
    shutil.copyfile(run_folder / "tokenizer.json", destination / "tokenizer.json")
    shutil.copyfile(run_folder / "tokenizer_config.json", destination / "tokenizer_config.json")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, default=RUN_FOLDER, help="folder of the training run")
    parser.add_argument("--destination", type=Path, default=MODEL_FOLDER)
    arguments = parser.parse_args()
    best = arguments.run / "best.pt"
    if not best.exists():
        sys.exit(f"no {best}: train first, with `python -m demo.train`")
    checkpoint = torch.load(best, weights_only=True)
    settings = torch.load(arguments.run / "state.pt", weights_only=True)["settings"]
    write_model(checkpoint["model"], arguments.run, arguments.destination)
    report = evaluate(arguments.destination)
    EVALUATION_FILE.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print_table(report)
    write_card(arguments.destination, report, {"about": checkpoint["about"], "settings": settings})


if __name__ == "__main__":
    main()
