"""Runs the graph that a stage made, and compares it with what the stage before gave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime as ort

from pipeline.parity.compare import compare
from pipeline.parity.cross import encoder_beside, run_encoder_graph
from pipeline.parity.decoder import run_decoder
from pipeline.parity.embeds import embeds_of
from pipeline.parity.encoder import run_encoder
from pipeline.parity.sessions import engine_session, graph_session
from pipeline.parity.tensors import compare_tensors, run_tensors

from .context import BuildContext, ModelFacts, Outputs

SCRATCH = "parity.onnx"


def compared(
    context: BuildContext, stage: str, graph: Path, before: str, before_graph: Path, engine: bool = False
) -> dict[str, Any]:
    """Figures of `graph`, made by `stage`, against `before_graph`, made by the stage `before`.

    `engine`: `graph` is run as the runtime runs it, with nothing optimized at load. What a graph gave is kept
    in the context, so that each runs once in a build.
    """
    if before not in context.outputs:
        context.outputs[before] = outputs_of(context, before, before_graph)
    facts = context.facts_after(stage)
    if engine:
        found = run(engine_session(graph), facts, context.parity_inputs(), graph)
    else:
        found = outputs_of(context, stage, graph)
    context.outputs[stage] = found
    return figures(facts, context.outputs[before], found, before)


def figures(facts: ModelFacts, reference: Outputs, candidate: Outputs, against: str) -> dict[str, Any]:
    """How far two runs of the same model on the parity inputs are from each other."""
    if facts.kind == "tensors":
        return compare_tensors(reference, candidate, against)
    return compare(reference, candidate, against, top1=facts.kind == "decoder")


def outputs_of(context: BuildContext, stage: str, graph: Path) -> Outputs:
    """What the graph that `stage` made gives on the parity inputs."""
    return run_graph(context, graph, context.facts_after(stage), context.parity_inputs())


def run_graph(context: BuildContext, graph: Path, facts: ModelFacts, inputs: list[Any]) -> Outputs:
    """What a graph between stages gives on `inputs`."""
    with graph_session(graph, context.workspace.staged(SCRATCH)) as session:
        return run(session, facts, inputs, graph)


def run(session: ort.InferenceSession, facts: ModelFacts, inputs: list[Any], graph: Path) -> Outputs:
    """Logits of every token (decoder), embeddings or logits (encoder), or the outputs of all runs (tensors).

    `session` runs `graph`, beside which the encoder lies that a decoder attends to, or that gives the rows of images.
    """
    if facts.kind == "tensors":
        return run_tensors(session, inputs)
    if facts.encoder is not None:
        encoder = engine_session(encoder_beside(graph))
        sources = run_encoder_graph(encoder, facts.encoder, facts.vocab_size)
        return run_decoder(session, facts.kv, inputs, sources)
    if facts.image_encoder is not None:
        seeing = engine_session(encoder_beside(graph))
        embeds = embeds_of(seeing, inputs, facts.image_encoder)
        return run_decoder(session, facts.kv, inputs, embeds=embeds)
    if facts.kind == "decoder":
        return run_decoder(session, facts.kv, inputs)
    return run_encoder(session, inputs)
