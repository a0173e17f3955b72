"""The Triton models of an engine of images with its steps: preprocess, the engine, postprocess and their ensemble."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

from ..backends import interface
from ..runtime.contract import EngineSpec
from ..runtime.errors import BadInput
from ..runtime.image_steps import ImageSteps
from ..runtime.manifest import Manifest
from .configs import DynamicBatching, EnsembleStep, ModelConfig, Tensor
from .decoder import same
from .decoder import tensors as fields
from .encoder import LABEL_FILE, label_lines
from .files import PILLOW, ModelFiles
from .settings import ServeSettings
from .tensors import tensors

MAX_BATCH_BYTES = 256 << 20
"""Of pixel_values in a batch: they go from step to step through shared memory."""
PREPROCESS_SUFFIX, ENGINE_SUFFIX = "_preprocess", "_tensors"
"""What follows a model's name in the names of its steps."""


def images(name: str, engine_dir: Path, manifest: Manifest, serve: ServeSettings) -> list[ModelFiles]:
    """All models that serve the engine in `engine_dir` as `name`. `<name>_tensors` also takes pixel_values from apps.

    Raises BadInput when rows of the engine depend on each other.
    """
    spec = manifest.engine
    assert spec is not None, "the caller read spec.images"
    steps = spec.images
    assert steps is not None, "as above"
    if not spec.batched:
        raise BadInput(
            f"{engine_dir / 'engine.json'}: an image's result depends on the others of its batch, so images of "
            "several requests cannot be served together; remove the checkpoint's preprocessor_config.json to serve "
            "pixel_values alone"
        )
    preprocess, engine_name = f"{name}{PREPROCESS_SUFFIX}", f"{name}{ENGINE_SUFFIX}"
    postprocess = f"{name}_postprocess"
    (engine,) = tensors(engine_name, engine_dir, manifest, serve, name)
    most = min(engine.config.max_batch_size, max(1, MAX_BATCH_BYTES // _image_bytes(spec)))
    engine = replace(engine, config=replace(engine.config, max_batch_size=most))
    varies = steps.preprocessing.size is None
    if varies:
        (size,) = fields((interface.IMAGE_SIZE,), optional=True, ragged=True)
        inputs = tuple(replace(tensor, ragged=True) for tensor in engine.config.inputs)
        engine = replace(
            engine, module="image_tensors", config=replace(engine.config, inputs=(*inputs, size))
        )
    read = {tensor.name: tensor.name for tensor in engine.config.inputs}
    given = {tensor.name: tensor.name for tensor in engine.config.outputs}
    sizes = (interface.ORIGINAL_SIZE,) if steps.task == "detection" else ()
    settings, outputs = _of_apps(steps)
    asked = (*fields((interface.IMAGE,)), *fields(settings, optional=True))
    ensemble_steps = [
        EnsembleStep(preprocess, same((interface.IMAGE,)), read | same(sizes)),
        EnsembleStep(engine_name, read, given),
    ]
    models = [_preprocess(preprocess, engine.config, fields(sizes), steps), engine]
    if steps.task == "embedding":
        served: tuple[Tensor, ...] = engine.config.outputs
    else:
        served = fields(outputs)
        needed = (*engine.config.outputs, *fields(sizes))
        models.append(_postprocess(postprocess, engine.config, (needed, settings), served, steps))
        ensemble_steps.append(
            EnsembleStep(postprocess, {**given, **same(sizes), **same(settings)}, same(outputs))
        )
    named, beside = _with_label_file(served, spec)
    config = ModelConfig(
        name, asked, named, max_batch_size=engine.config.max_batch_size, steps=tuple(ensemble_steps)
    )
    return [*models, ModelFiles(config, beside=beside)]


def _of_apps(steps: ImageSteps) -> tuple[tuple[interface.Field, ...], tuple[interface.Field, ...]]:
    """What apps may set, and what they get from the last step."""
    if steps.task == "classification":
        outputs = (interface.LABELS, interface.LABEL_SCORES, interface.scores(len(steps.labels)))
        return (interface.TOP_K,), outputs
    if steps.task == "detection":
        return (interface.THRESHOLD,), interface.DETECTED
    return (), ()


def _image_bytes(spec: EngineSpec) -> int:
    """Of the largest pixel_values that an image may have."""
    bounds = {axis.name: axis.most or 1 for axis in spec.axes}
    sides = spec.inputs[0].shape[1:]
    return 4 * math.prod(side if isinstance(side, int) else bounds[side] for side in sides)


def served_outputs(steps: ImageSteps) -> tuple[str, ...]:
    """Names of what apps get."""
    return ("embedding",) if steps.task == "embedding" else tuple(field.name for field in _of_apps(steps)[1])


def _preprocess(name: str, engine: ModelConfig, sizes: tuple[Tensor, ...], steps: ImageSteps) -> ModelFiles:
    """The step from encoded images to what the engine reads."""
    made = tuple(replace(tensor, optional=False, ragged=False) for tensor in engine.inputs)
    return ModelFiles(
        ModelConfig(
            name,
            fields((interface.IMAGE,)),
            (*made, *sizes),
            max_batch_size=engine.max_batch_size,
            dynamic_batching=DynamicBatching(),
            parameters={"preprocessing": json.dumps(asdict(steps.preprocessing))},
        ),
        "image_preprocess",
        requirements=("numpy>=1.26", PILLOW),
    )


def _postprocess(
    name: str,
    engine: ModelConfig,
    reads: tuple[tuple[Tensor, ...], tuple[interface.Field, ...]],
    outputs: tuple[Tensor, ...],
    steps: ImageSteps,
) -> ModelFiles:
    """The step from the engine's outputs to labels or objects; `reads`: what it needs, and what apps may set."""
    needed, settings = reads
    return ModelFiles(
        ModelConfig(
            name,
            (*needed, *fields(settings, optional=True)),
            outputs,
            max_batch_size=engine.max_batch_size,
            dynamic_batching=DynamicBatching(),
            parameters={"images": json.dumps(asdict(steps))},
        ),
        "image_postprocess",
        requirements=("numpy>=1.26",),
    )


def _with_label_file(
    outputs: tuple[Tensor, ...], spec: EngineSpec
) -> tuple[tuple[Tensor, ...], dict[str, str]]:
    """Classifiers: names of `scores` for clients that ask Triton for the k largest."""
    assert spec.images is not None
    if spec.images.task != "classification":
        return outputs, {}
    named = tuple(replace(each, label_file=LABEL_FILE) if each.name == "scores" else each for each in outputs)
    return named, {LABEL_FILE: label_lines(spec.images.labels)}
