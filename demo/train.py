"""Trains the demo model on a CPU; a run that was ended goes on where its last checkpoint is.

    python -m demo.train                # after `python -m demo.corpus`
    python -m demo.train --minutes 60   # the schedules complete within an hour of training time

Writes into build/demo-training/: tokenizer files, state.pt (the run), best.pt (the weights that did
best on the held-out text) and log.jsonl. `python -m demo.publish` makes demo/model of it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBar
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from demo.batches import Batches
from demo.checkpoint import Progress, ResumeError, load_state, save_state, write_atomically
from demo.corpus import HELDOUT_FILE, ROOT, TRAIN_FILE
from demo.likelihood import bits_per_byte, model_nats
from demo.model_config import MAX_POSITIONS, demo_config
from demo.settings import TrainSettings
from demo.tokenizer import encode_file, save_tokenizer, text_bytes, train_tokenizer

RUN_FOLDER = ROOT / "build" / "demo-training"
EVALUATE_EVERY_STEPS = 400
SAVE_EVERY_SECONDS = 180.0
LOG_EVERY_STEPS = 50


def make_optimizer(model: torch.nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW with weight decay on the matrices and none on the norms' weights."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=True)


class Trainer:
    """One run: model, optimizer, data and how far it has come."""

    def __init__(self, settings: TrainSettings, folder: Path, restart: bool) -> None:
        """Prepare a run in `folder`, resumed from its state.pt unless `restart`."""
        self.settings = settings
        self.folder = folder
        self.state_file = folder / "state.pt"
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer_file = folder / "tokenizer.json"
        if restart or not self.state_file.exists():
            for name in ("state.pt", "best.pt", "log.jsonl"):
                (folder / name).unlink(missing_ok=True)
            save_tokenizer(train_tokenizer(TRAIN_FILE), folder, MAX_POSITIONS)
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
        self.batches = Batches(encode_file(tokenizer, TRAIN_FILE), settings.seed)
        self.heldout_ids = encode_file(tokenizer, HELDOUT_FILE)
        self.heldout_bytes = text_bytes(HELDOUT_FILE)
        torch.manual_seed(settings.seed)
        self.model = LlamaForCausalLM(demo_config())
        self.optimizer = make_optimizer(self.model, settings)
        self.progress = Progress()
        if self.state_file.exists():
            self.progress = load_state(self.state_file, settings, self.model, self.optimizer)

    def step(self, fraction: float) -> float:
        """One optimizer step on one batch; the batch's loss in nats per token."""
        settings = self.settings
        rate = settings.rate_at(self.progress.step, fraction)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        context = settings.context_at(fraction)
        inputs, targets = self.batches.at(self.progress.tokens, context, settings.batch_tokens)
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.model(input_ids=inputs, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.progress.step += 1
        self.progress.tokens += settings.batch_tokens
        return float(loss.detach())

    def evaluate(self) -> float:
        """Held-out bits per byte; the weights are kept in best.pt when they are the best so far.

        Measured over windows of all positions that the model has, because it is served with them.
        """
        self.model.eval()
        nats = model_nats(self.model, self.heldout_ids, MAX_POSITIONS, stride=MAX_POSITIONS, bfloat16=True)
        self.model.train()
        value = bits_per_byte(nats, self.heldout_bytes)
        if value < self.progress.best_bits_per_byte:
            self.progress.best_bits_per_byte = value
            about = {
                "step": self.progress.step,
                "tokens": self.progress.tokens,
                "seconds": self.progress.seconds,
            }
            write_atomically(self.folder / "best.pt", {"model": self.model.state_dict(), "about": about})
        return value

    def save(self) -> None:
        """Write state.pt."""
        save_state(self.state_file, self.settings, self.progress, self.model, self.optimizer)

    def log(self, **fields: float) -> None:
        """Append one JSON object to log.jsonl."""
        progress = self.progress
        line = {
            "step": progress.step,
            "tokens": progress.tokens,
            "seconds": round(progress.seconds, 1),
            **fields,
        }
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def run(self) -> None:
        """Train until the planned steps or minutes are done."""
        settings, progress = self.settings, self.progress
        began = time.monotonic() - progress.seconds
        saved = progress.seconds
        losses: list[float] = []
        self.model.train()
        columns = (BarColumn(), TextColumn("{task.percentage:.1f}% {task.description}"), TimeElapsedColumn())
        with ProgressBar(*columns, disable=not sys.stderr.isatty()) as bar:
            task = bar.add_task("", total=1.0)
            while (fraction := settings.progress(progress.step, progress.seconds)) < 1.0:
                losses.append(self.step(fraction))
                progress.seconds = time.monotonic() - began
                if progress.step % LOG_EVERY_STEPS == 0:
                    loss = float(np.mean(losses))
                    losses.clear()
                    self.log(loss=round(loss, 4), context=settings.context_at(fraction))
                    bar.update(task, completed=fraction, description=f"step {progress.step}, loss {loss:.3f}")
                if progress.step % EVALUATE_EVERY_STEPS == 0:
                    self.log(heldout_bits_per_byte=round(self.evaluate(), 4))
                    progress.seconds = time.monotonic() - began
                if progress.seconds - saved > SAVE_EVERY_SECONDS:
                    self.save()
                    saved = progress.seconds
        self.log(heldout_bits_per_byte=round(self.evaluate(), 4))
        self.save()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    defaults = TrainSettings()
    parser.add_argument("--steps", type=int, default=defaults.steps, help="planned optimizer steps")
    parser.add_argument(
        "--minutes", type=float, default=None, help="training time after which the run is complete"
    )
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--threads", type=int, default=None, help="threads of torch (default: all cores)")
    parser.add_argument("--folder", type=Path, default=RUN_FOLDER, help="where the run is kept")
    parser.add_argument("--restart", action="store_true", help="forget an earlier run in the folder")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    settings = replace(defaults, steps=arguments.steps, minutes=arguments.minutes, seed=arguments.seed)
    try:
        trainer = Trainer(settings, arguments.folder, arguments.restart)
        trainer.run()
    except (ResumeError, FileNotFoundError) as error:
        sys.exit(f"{error}\n(the text is made by `python -m demo.corpus`)")
    print(f"best held-out bits per byte: {trainer.progress.best_bits_per_byte:.4f}")


if __name__ == "__main__":
    main()
