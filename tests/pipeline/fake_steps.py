"""Stages that do nothing useful, quickly: to test the runner, the lock and kills without a compiler of models.

Run as a program it builds with them: `python -m tests.pipeline.fake_steps build MODEL OUTPUT COUNTER [GATE]`
waits in the export until the file GATE exists; `... loop MODEL OUTPUT` builds one generation after another.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from pipeline.builder import build
from pipeline.recipe import FuseRecipe, Recipe
from pipeline.stages import Product, Stage, StageRow
from pipeline.steps.context import BuildContext
from pipeline.workspace import ENGINE, EXPORTED, FUSED, REPOSITORY, WEIGHTS, lowered

WEIGHT_BYTES = 200_000
NAMES = {
    "export": EXPORTED,
    "fuse": FUSED,
    "lower": lowered("onnxruntime"),
    "compile": ENGINE,
    "emit": REPOSITORY,
}
REPOSITORY_FILES = 20
PARITY = {"against": "before", "rows": 1, "min_cosine": 1.0, "max_abs_difference": 0.0, "top1": 1.0}


def write_checkpoint(folder: Path) -> Path:
    """A Llama checkpoint by its files, with a weight that nobody loads."""
    from safetensors.numpy import save_file

    folder.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 16,
        "max_position_embeddings": 64,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    save_file({"weight": np.zeros((100, 100), np.float32)}, folder / "model.safetensors")
    return folder


@dataclasses.dataclass
class Fakes:
    """Five stages. `ran` lists those that ran; `gate` is waited for in the export; `fail` makes one raise."""

    ran: list[str] = dataclasses.field(default_factory=list)
    counter: Path | None = None
    gate: Path | None = None
    fail: Mapping[str, Exception] = dataclasses.field(default_factory=dict)
    parity: Mapping[str, object] = dataclasses.field(default_factory=lambda: PARITY)
    work: Callable[[str, BuildContext], None] = lambda stage, context: None

    def steps(self) -> dict[str, Callable[[BuildContext], Stage]]:
        """What `build` takes."""
        return {name: self._step(name) for name in NAMES}

    def _step(self, name: str) -> Callable[[BuildContext], Stage]:
        before = list(NAMES)[list(NAMES).index(name) - 1] if name != "export" else None

        def stage(context: BuildContext) -> Stage:
            section = {"compile": "target", "emit": "serve", "lower": "quantize"}.get(name, name)
            inputs = (
                (lambda: context.source.files) if before is None else lambda: context.artifact_files(before)
            )
            return Stage(
                name=name,
                code=("pipeline/stages.py",),
                packages=(),
                recipe=getattr(context.recipe, section).to_dict(),
                inputs=inputs,
                run=lambda: self._run(name, context),
                command=("slipway", name, context.shown),
                needed_bytes=1000,
            )

        return stage

    def _run(self, name: str, context: BuildContext) -> Product:
        self.ran.append(name)
        if self.counter is not None:
            with self.counter.open("a") as file:
                file.write(f"{name}\n")
        while name == "export" and self.gate is not None and not self.gate.exists():
            time.sleep(0.01)
        if name in self.fail:
            raise self.fail[name]
        self.work(name, context)
        generation = ",".join((*context.recipe.fuse.disable, str(context.recipe.target.max_batch)))
        return write_product(name, context, generation, self.parity)


def write_product(name: str, context: BuildContext, generation: str, parity: Mapping[str, object]) -> Product:
    """Staged files whose content names the stage and the generation; one weight, shared by generations."""
    workspace = context.workspace
    staged = workspace.staged(NAMES[name])
    if name == "emit":
        for number in range(REPOSITORY_FILES):
            path = staged / f"model_{number}" / "config.pbtxt"
            path.parent.mkdir(parents=True)
            path.write_text(f"{generation} {number}")
        return Product({REPOSITORY: staged}, parity=parity)
    staged.write_text(f"{name} {generation}" * 1000)
    data = f"{name} {generation}".encode().ljust(WEIGHT_BYTES, b".")
    weights = workspace.path(WEIGHTS)
    weights.mkdir(exist_ok=True)
    weight = weights / hashlib.sha256(data).hexdigest()
    temporary = weights / f".{weight.name}.1"
    temporary.write_bytes(data)
    temporary.replace(weight)
    return Product({NAMES[name]: staged}, shared=[weight], parity=parity)


class Lines:
    """Progress as lines on stderr, at once."""

    def started(self, stage: str) -> None:
        self.say(f"started {stage}")

    def finished(self, row: StageRow) -> None:
        self.say(f"finished {row.stage}")

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def main(mode: str, model: str, output: str, *rest: str) -> None:
    """See the module's own words."""
    recipe = Recipe.for_model(model)
    if mode == "build":
        counter, *gate = (Path(name) for name in rest)
        fakes = Fakes(counter=counter, gate=gate[0] if gate else None)
        build(recipe, output, steps=fakes.steps(), progress=Lines())
        return
    for generation in itertools.count():
        generations = dataclasses.replace(recipe, fuse=FuseRecipe(disable=(f"generation {generation}",)))
        build(generations, output, steps=Fakes().steps(), force=True)
        print(generation, flush=True)


if __name__ == "__main__":
    # Where the tests run in the background Ctrl-C is ignored, and what they start would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main(*sys.argv[1:])
