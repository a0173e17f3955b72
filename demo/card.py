"""The model card, demo/model/README.md: what the model is, from what, how good, and what it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from demo.books import BOOKS
from demo.evaluate import load_model
from demo.packages import PACKAGES

PROMPTS = (
    "The old man",
    '"My dear sister," said',
    "It was a dark and stormy night,",
    "When the ship came into the harbour",
)
SAMPLE_TOKENS = 120
SAMPLE_SEED = 1

_TEMPLATE_FILE = Path(__file__).with_name("card_template.md")


def sample(model_folder: Path) -> list[tuple[str, str]]:
    """(prompt, continuation) for each of PROMPTS, by the folder's own generation config."""
    model = load_model(model_folder)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    written = []
    for prompt in PROMPTS:
        inputs = tokenizer(prompt, return_tensors="pt")
        torch.manual_seed(SAMPLE_SEED)
        ids = model.generate(
            input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, max_new_tokens=SAMPLE_TOKENS
        )
        continuation = ids[0, inputs.input_ids.shape[1] :]
        written.append((prompt, tokenizer.decode(continuation, skip_special_tokens=True)))
    return written


def quoted(prompt: str, continuation: str) -> str:
    """A sample as a block quote."""
    paragraphs = f"**{prompt}**{continuation}".strip().split("\n\n")
    return "\n>\n".join(f"> {paragraph.strip()}" for paragraph in paragraphs)


def write_card(model_folder: Path, report: dict[str, Any], run: dict[str, Any]) -> None:
    """Write README.md into `model_folder`.

    `report` is what `demo.evaluate.evaluate` returns; `run` tells of the training run: `about`
    (step, tokens and seconds of the checkpoint) and `settings`.
    """
    heldout = report["heldout"]
    about, settings = run["about"], run["settings"]
    arguments = f" --steps {settings['steps']}"
    if settings["minutes"]:
        arguments += f" --minutes {settings['minutes']:g}"
    card = _TEMPLATE_FILE.read_text(encoding="utf-8").format(
        parameters=sum(value.numel() for value in load_model(model_folder).parameters()) / 1e6,
        bytes_per_token=heldout["bytes"] / heldout["tokens"],
        tokens=heldout["tokens"],
        num_bytes=heldout["bytes"],
        model_bits=heldout["model"]["bits_per_byte"],
        model_perplexity=heldout["model"]["perplexity_per_token"],
        all_positions_bits=heldout["model_all_positions"]["bits_per_byte"],
        ngram_bits=heldout["kneser_ney_5gram"]["bits_per_byte"],
        ngram_perplexity=heldout["kneser_ney_5gram"]["perplexity_per_token"],
        train_tokens=report["train_tokens"],
        packages=", ".join(f"`{package.name}` {package.version} ({package.licence})" for package in PACKAGES),
        books="\n".join(f"- {book.author}, *{book.title}*" for book in BOOKS),
        arguments=arguments,
        seed=settings["seed"],
        step=about["step"],
        seen=about["tokens"],
        epochs=about["tokens"] / report["train_tokens"],
        minutes=about["seconds"] / 60.0,
        batch_tokens=settings["batch_tokens"],
        sample_seed=SAMPLE_SEED,
        sample_tokens=SAMPLE_TOKENS,
        samples="\n\n---\n\n".join(quoted(*pair) for pair in sample(model_folder)),
    )
    (model_folder / "README.md").write_text(card, encoding="utf-8")
