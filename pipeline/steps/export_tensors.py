"""The part of the export that holds a model of named tensors; runs in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.recipe import Recipe

from .context import ModelFacts


def export_tensor_model(recipe: dict[str, Any], graph: str, expected: str, examples: str) -> dict[str, Any]:
    """Writes the exported graph to `graph`, the inputs of the parity runs to `examples`, and what the model gives
    on them to `expected`.

    `recipe` as `Recipe.to_dict` gives it; `expected` is an .npz of the outputs of all runs in order, `examples` one
    of `pipeline.parity.tensors.save_runs`. Gives `facts` (`ModelFacts.to_dict`), `weights`, the paths of the graph's
    weight files, and `against`, what the graph is compared with. Raises what `export_tensors` raises.
    """
    from pipeline.export.tensors import export_tensors
    from pipeline.graph import save_graph
    from pipeline.parity.tensors import save_runs
    from pipeline.sources import open_source

    settings = Recipe.from_dict(recipe)
    source = open_source(settings.source.model, settings.source)
    model = source.load()
    exported = export_tensors(model, settings.export.opset)
    with Path(expected).open("wb") as file:
        np.savez(file, *(array for outputs in exported.expected for array in outputs))
    save_runs(Path(examples), exported.runs)
    facts = ModelFacts(
        name=source.name,
        kind="tensors",
        vocab_size=0,
        max_length=0,
        end_token_ids=(),
        features=(),
        kv=(),
        encoder_inputs=(),
        hidden_size=None,
        head=source.head,
        inputs=exported.inputs,
        outputs=exported.outputs,
        axes=exported.axes,
        batched=exported.batched,
        images=model.images,
    )
    saved = save_graph(exported.graph, Path(graph))
    return {
        "facts": facts.to_dict(),
        "weights": [str(path) for path in saved.weights],
        "against": model.origin,
    }
