"""`evaluate`: an engine's accuracy on held-out data, beside the float32 graph that it was made of or another engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibration.activations import graph_session, observable
from calibration.batches import refuse_cross_attention
from calibration.report.heldout import HELDOUT_FILE, WINDOW, check_apart, sentences, windows
from calibration.report.subject import Subject
from calibration.samples.kept import TOKENS_FILE, read_samples
from model_repo.runtime.contract import EngineSpec
from model_repo.runtime.errors import BadInput
from model_repo.runtime.executed import check_on_cpu
from model_repo.runtime.manifest import Manifest
from model_repo.runtime.onnxruntime_executor import session
from model_repo.runtime.tokenizer import Tokenizer

from .steps.context import ModelFacts
from .workspace import ENGINE, FUSED, MANIFESTS, WEIGHTS

TOKENS = 60_000
"""Tokens of held-out text that are scored at most where nobody says how many."""
SENTENCES = 500
WORST = 10

Advanced = Callable[[int, int], None]


@dataclass(frozen=True)
class Given:
    """What is evaluated on. `data`: a text file (None: the demo's held-out text), or an .npz for named tensors, where
    an array `labels` holds the right classes (None: the inputs that the build chose for its parity checks)."""

    data: Path | None = None
    tokens: int | None = TOKENS
    sentences: int = SENTENCES


def evaluate(
    folder: Path,
    against: Path | None = None,
    given: Given | None = None,
    *,
    compare_always: bool = False,
    threads: int | None = None,
    advanced: Advanced = lambda done, total: None,
) -> dict[str, Any]:
    """The report on the engine in `folder`, as plain JSON values.

    `against`: another folder whose engine is the reference; None for the fused float32 graph of `folder` itself, which
    an engine of precision fp32 without quantized caches is not compared with unless `compare_always`. Raises BadInput
    when something is missing, of another model, or of a kind that is not evaluated.
    """
    given = given or Given()
    spec = _manifest(folder, "compile").engine
    if spec is None:
        raise BadInput(f"{folder} holds no engine; run slipway compile {folder}")
    if spec.image_encoder is not None:
        raise BadInput(
            f"{folder} holds a vision-language model, which is not evaluated; decoders and encoders are"
        )
    check_on_cpu(folder, spec, "evaluated")
    count = spec.threads if threads is None else threads
    candidate = _engine(folder, spec, folder / ENGINE, count)
    reference = _reference(folder, against, spec, count, compare_always)
    report: dict[str, Any] = {"model": spec.name, "kind": spec.kind}
    report |= _figures(folder, spec, candidate, reference, given, advanced)
    report["candidate"] = _side(candidate)
    report["reference"] = None if reference is None else _side(reference)
    if reference is not None and against is None:
        report["worst"] = worst_layers(folder, spec)
    return report


def worst_layers(folder: Path, spec: EngineSpec) -> list[dict[str, Any]]:
    """The engine's tensors that are farthest from the fused graph's when what they read is right; largest first."""
    from .parity.feeds import graph_feeds
    from .parity.pairs import borrow_notes
    from .parity.stepwise import comparable_graph
    from .parity.walk import GraphReference, walk

    facts, inputs = parity_inputs_of(folder)
    wanted, candidate = comparable_graph(folder / FUSED), comparable_graph(folder / ENGINE)
    borrow_notes(candidate, wanted)
    found = walk(
        GraphReference(wanted, graph_feeds(facts.kind, facts.kv, inputs)),
        candidate,
        lambda: graph_feeds(facts.kind, spec.kv, inputs),  # whose pools may hold codes
    )
    largest = sorted(found.steps, key=lambda step: -step.own_error)[:WORST]
    return [
        {
            "tensor": step.tensor,
            "operator": step.node.operator,
            "module": step.node.module,
            "error": step.own_error,
        }
        for step in largest
        if step.own_error > 0
    ]


def parity_inputs_of(folder: Path) -> tuple[ModelFacts, list[Any]]:
    """Facts of the model built in `folder`, and what its stages are compared on."""
    from .recipe import Recipe
    from .steps.context import BuildContext
    from .workspace import RECIPE, Workspace

    context = BuildContext(Recipe.load(folder / RECIPE), Workspace(folder), exports=False)
    return context.facts, context.parity_inputs()


def _figures(
    folder: Path,
    spec: EngineSpec,
    candidate: Subject,
    reference: Subject | None,
    given: Given,
    advanced: Advanced,
) -> dict[str, Any]:
    refuse_cross_attention(spec.kv)
    if spec.kind == "tensors":
        from calibration.report.arrays import compare_arrays

        samples, labels = _arrays(folder, spec, given.data)
        return compare_arrays(candidate, reference, spec, samples, labels, advanced)
    if spec.kind not in ("decoder", "encoder"):
        raise BadInput(
            f"engines of kind {spec.kind} are not evaluated; decoders, encoders and named tensors are"
        )
    tokenizer = _tokenizer(folder)
    source = given.data or HELDOUT_FILE
    if spec.kind == "decoder":
        from calibration.report.language import compare_language

        text = windows(source, tokenizer, min(WINDOW, spec.max_length), given.tokens)
        check_apart(_calibrated(folder), text)
        figures = compare_language(candidate, reference, text, spec.vocab_size, advanced)
    else:
        from calibration.report.sentences import compare_sentences

        ids = [
            tokenizer.encode(sentence)[: spec.max_length] for sentence in sentences(source, given.sentences)
        ]
        check_apart(_calibrated(folder), ids)
        figures = compare_sentences(candidate, reference, spec, ids, advanced)
    return {"data": source.name, **figures}


def _engine(folder: Path, spec: EngineSpec, graph: Path, threads: int) -> Subject:
    """The engine as the runtime loads it."""
    opened = session(graph, folder / spec.plugin if spec.plugin else None, threads)
    return Subject(f"{spec.name}, {_numbers(spec)}", opened, _graph_bytes(graph), spec.kv)


def _reference(
    folder: Path, against: Path | None, spec: EngineSpec, threads: int, always: bool
) -> Subject | None:
    if against is not None:
        other = _manifest(against, "compile").engine
        if other is None or (other.kind, other.vocab_size) != (spec.kind, spec.vocab_size):
            raise BadInput(
                f"{against} holds no engine of the kind and vocabulary of {folder}; give a build of one model"
            )
        return _engine(against, other, against / ENGINE, threads)
    facts = ModelFacts.from_dict(_manifest(folder, "export").details.get("model", {}))
    plain = spec.precision == "fp32" and all(layer.dtype == "float32" for layer in spec.kv)
    if plain and not always:
        return None
    graph = folder / FUSED
    opened = graph_session(observable(graph), folder, threads)
    return Subject(f"{spec.name}, float32", opened, _graph_bytes(graph), facts.kv)


def _numbers(spec: EngineSpec) -> str:
    caches = sorted({layer.dtype for layer in spec.kv} - {"float32"})
    return spec.precision + (f", {', '.join(caches)} cache" if caches else "")


def _side(subject: Subject) -> dict[str, Any]:
    return {
        "name": subject.name,
        "bytes": subject.bytes,
        "tokens_per_second": round(subject.tokens_per_second, 1),
    }


def _graph_bytes(graph: Path) -> int:
    """The graph's file and the weights that it names."""
    import onnx_ir as ir

    from .graph import load_graph

    named = {
        value.const_value.location
        for inner in load_graph(graph).graphs()
        for value in inner.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor)
    }
    return graph.stat().st_size + sum(
        (graph.parent / WEIGHTS / Path(name).name).stat().st_size for name in named
    )


def _arrays(folder: Path, spec: EngineSpec, data: Path | None) -> tuple[Sequence[Any], Any]:
    if data is None:
        return parity_inputs_of(folder)[1], None
    from calibration.samples.arrays import read_arrays

    found = read_arrays(data, spec.inputs, spec.batched)
    with np.load(data, allow_pickle=False) as file:
        labels = file["labels"] if "labels" in file.files else None
    if labels is not None and labels.shape != (len(found),):
        raise BadInput(f"{data}: the array 'labels' is {list(labels.shape)}; it must be [{len(found)}]")
    return [sample.item for sample in found], labels


def _calibrated(folder: Path) -> Sequence[Sequence[int]]:
    """The samples that a calibration left here."""
    if not (folder / TOKENS_FILE).is_file():
        return ()
    return [item for item in read_samples(folder) if isinstance(item, tuple)]


def _tokenizer(folder: Path) -> Tokenizer:
    from .steps.context import TOKENIZER

    path = folder / TOKENIZER
    if not path.is_file():
        raise BadInput(f"{folder} was built without a tokenizer, so that held-out text cannot be read")
    return Tokenizer.load(path)


def _manifest(folder: Path, stage: str) -> Manifest:
    return Manifest.read(folder / MANIFESTS[stage])


def dump(report: dict[str, Any]) -> str:
    """The report as JSON text, which knows no NaN and no infinity."""
    return json.dumps(_finite(report), indent=2, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return "not finite" if isinstance(value, float) and not np.isfinite(value) else value
