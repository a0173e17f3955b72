"""One export in this process: `python bench/export_run.py EXPORTER CHECKPOINT FOLDER TASK`, from the checkpoint to the
graph and its weights on the disk. Prints JSON: {"imports", "export"} in seconds.

`optimum` runs in an environment of its own, without Slipway: this file imports only what its exporter needs.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

Export = Callable[[Path, Path, str], None]


def slipway() -> Export:
    from pipeline.export import decoder, encoder  # noqa: F401  what `export` imports on its way
    from pipeline.export import export as run
    from pipeline.graph import save_graph
    from pipeline.recipe import ExportRecipe, SourceRecipe
    from pipeline.sources import open_source

    def export(checkpoint: Path, folder: Path, task: str) -> None:
        source = open_source(str(checkpoint), SourceRecipe(str(checkpoint)))
        exported = run(source.with_weights_in(folder / "weights"), ExportRecipe())
        save_graph(exported.model, folder / "export.onnx")

    return export


def torch_onnx() -> Export:
    """torch.onnx.export(dynamo=True) of the model as transformers gives it; a decoder without its cache."""
    import torch
    from torch.export import Dim
    from transformers import AutoModel, AutoModelForCausalLM

    def export(checkpoint: Path, folder: Path, task: str) -> None:
        loader = AutoModelForCausalLM if task.startswith("text-generation") else AutoModel
        model = loader.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager").eval()
        model.config.use_cache = False
        batch, length = Dim("batch", min=1, max=1 << 10), Dim("length", min=2, max=512)
        inputs = {
            "input_ids": torch.ones(2, 7, dtype=torch.int64),
            "attention_mask": torch.ones(2, 7, dtype=torch.int64),
        }
        program = torch.onnx.export(
            model,
            (),
            kwargs=inputs,
            dynamo=True,
            dynamic_shapes={name: {0: batch, 1: length} for name in inputs},
            verbose=False,
        )
        assert program is not None
        program.save(folder / "model.onnx", external_data=True)

    return export


def optimum() -> Export:
    """Its own default for the task, without the comparison of the result with the model."""
    from optimum.exporters.onnx import main_export

    def export(checkpoint: Path, folder: Path, task: str) -> None:
        main_export(str(checkpoint), output=str(folder), task=task, do_validation=False, no_post_process=True)

    return export


EXPORTERS: dict[str, Callable[[], Export]] = {
    "slipway": slipway,
    "torch.onnx": torch_onnx,
    "optimum": optimum,
}


def main() -> None:
    exporter, checkpoint, folder, task = sys.argv[1:]
    warnings.simplefilter("ignore")
    begin = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        export = EXPORTERS[exporter]()
        imported = time.perf_counter()
        export(Path(checkpoint), Path(folder), task)
    end = time.perf_counter()
    print(json.dumps({"imports": imported - begin, "export": end - imported}))


if __name__ == "__main__":
    main()
