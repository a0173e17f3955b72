"""Stage calibrate: the ranges of the fused graph's activations on real data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_repo.runtime.errors import BadInput
from pipeline.options import changed_options
from pipeline.recipe import Recipe
from pipeline.stages import Product, Stage
from pipeline.workspace import FUSED, SCALES, STAGING

from .context import CHAT_TEMPLATE, TOKENIZER, BuildContext, graph_files

if TYPE_CHECKING:
    from calibration.ranges import Ruler
    from calibration.samples import Samples
    from model_repo.runtime.tokenizer import Tokenizer

CODE = (
    "calibration",
    "pipeline/steps/calibrate.py",
    "plugins/cpu",
    "plugins/pools.py",
    "plugins/schemas.py",
    "plugins/attention_operators.py",
)
PACKAGES = ("onnx", "onnx-ir", "onnxruntime", "tokenizers", "ml_dtypes", "pillow")

STATIC_PRECISIONS = frozenset(("fp8",))
"""Precisions whose activations have ranges fixed beforehand; others compute them for each token, or need none."""
CONVOLVED_PRECISIONS = frozenset(("int8", "mixed"))
"""Precisions that convolutions are quantized with, what they read by ranges fixed beforehand, where data is given."""
STATIC_KV_DTYPES = frozenset(("int8", "fp8"))
"""Element types of pools whose scales are fixed beforehand."""


def needed(recipe: Recipe) -> bool:
    """Whether a build of this recipe calibrates."""
    quantize = recipe.quantize
    fixed = quantize.precision in STATIC_PRECISIONS or quantize.kv_dtype in STATIC_KV_DTYPES
    return fixed or convolves(recipe) or _has_one_scale(recipe)


def _has_one_scale(recipe: Recipe) -> bool:
    """Whether the target takes one scale for what products read, where others compute one for each token."""
    from pipeline.quantize.policy import policy_of
    from pipeline.quantize.precisions import layer_schemes

    quantize = recipe.quantize
    if not quantize.quantizes or quantize.precision == "mixed":
        return False
    activation = layer_schemes(quantize.precision, quantize.block).activation
    return activation is not None and policy_of(recipe.target.name, quantize.precision).static_only


def convolves(recipe: Recipe) -> bool:
    """Whether a build of this recipe quantizes the model's convolutions, should it have some."""
    return recipe.quantize.precision in CONVOLVED_PRECISIONS and recipe.calibrate.data is not None


def ruler(recipe: Recipe) -> Ruler:
    """How this recipe chooses ranges. Raises BadInput for a method that its format has no use for."""
    from calibration.ranges import Ruler
    from calibration.schemes import Scheme
    from pipeline.quantize.policy import policy_of

    scheme = Scheme("e4m3" if recipe.quantize.precision == "fp8" else "int8")
    if convolves(recipe):
        scheme = policy_of(recipe.target.name, recipe.quantize.precision).convolved
    chosen = Ruler(recipe.calibrate.method, scheme, recipe.calibrate.percentile)
    chosen.observer()
    return chosen


def stage(context: BuildContext) -> Stage:
    """The stage in this build."""
    recipe = context.recipe
    return Stage(
        name="calibrate",
        code=CODE,
        packages=PACKAGES,
        recipe={"calibrate": recipe.calibrate.to_dict(), "quantize": recipe.quantize.to_dict()},
        inputs=lambda: [*graph_files(context, "fuse"), *_data_files(context)],
        given=lambda: context.facts.to_dict(),
        run=lambda: _run(context),
        command=("slipway", "calibrate", context.shown, *changed_options("calibrate", recipe.calibrate)),
        needed_bytes=context.needed_bytes(0),
    )


def samples_of(context: BuildContext) -> Samples:
    """The samples that the recipe names. Raises BadInput."""
    from calibration.samples import open_samples
    from model_repo.runtime.images import Preprocessor

    facts, given = context.facts, context.recipe.calibrate
    return open_samples(
        None if given.data is None else Path(given.data),
        facts,
        vocab_size=facts.vocab_size,
        max_length=facts.max_length,
        tokenizer=tokenizer_of(context),
        preprocessor=Preprocessor(facts.images.preprocessing) if facts.images is not None else None,
        count=given.samples,
    )


def tokenizer_of(context: BuildContext) -> Tokenizer | None:
    """The exported model's tokenizer with its chat template; None for models that came without one."""
    from model_repo.runtime.tokenizer import Tokenizer

    files = {path.name: path for path in context.artifact_files("export")}
    if TOKENIZER not in files:
        return None
    tokenizer = Tokenizer.load(files[TOKENIZER])
    if CHAT_TEMPLATE in files:
        tokenizer.chat_template = files[CHAT_TEMPLATE].read_text(encoding="utf-8")
    return tokenizer


def _run(context: BuildContext) -> Product:
    from calibration.ranges import observe
    from calibration.samples.kept import write_samples

    workspace, recipe = context.workspace, context.recipe
    rule = ruler(recipe)
    samples = samples_of(context)
    scales = observe(
        workspace.path(FUSED),
        context.facts,
        samples,
        rule,
        threads=recipe.target.threads,
        advanced=context.progress.advanced,
    )
    staged = workspace.staged(SCALES)
    scales.write(staged)
    name, kept = write_samples(samples.items, workspace.folder, STAGING)
    details: dict[str, Any] = {
        "data": samples.to_dict(),
        "method": rule.method,
        "scheme": str(rule.scheme),
        "tensors": len(scales.tensors),
    }
    return Product(
        {SCALES: staged, name: kept}, parity="not run: nothing is computed differently", details=details
    )


def _data_files(context: BuildContext) -> list[Path]:
    """The data's files, so that a change of theirs calibrates again. Raises BadInput when there are none."""
    from calibration.samples import DEFAULT_FILE

    given = context.recipe.calibrate.data
    path = DEFAULT_FILE if given is None else Path(given)
    if path.is_dir():
        return sorted(entry for entry in path.rglob("*") if entry.is_file())
    if not path.is_file():
        raise BadInput(
            f"no calibration data at {path}; give a .jsonl, .txt or .npz file or a folder of images"
        )
    tokenizers = [file for file in context.artifact_files("export") if file.name == TOKENIZER]
    return [path, *tokenizers]
