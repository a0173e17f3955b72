"""TensorRT and TensorRT-RTX: standard operators in 16 bit, and an engine of the builder's.

A decoder's attention is the paged plugin on TensorRT, and native attention over linear caches on TensorRT-RTX.
Executing these engines takes a GPU. What is built is compared before the builder sees it (the lowered graph, on a CPU)
and looked at afterwards (its layers, inputs and outputs, as the builder reports them).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_repo.runtime.errors import BadInput
from pipeline.recipe import FLOATS, QuantizeRecipe, Recipe, TargetRecipe
from pipeline.targets.base import AS_IT_IS, BucketRule, Kind, Lowering, Problem, TargetDescriptor

if TYPE_CHECKING:
    import onnx_ir as ir

    from model_repo.runtime.contract import EngineSpec
    from pipeline.precision.plan import Precision

RTX = TargetDescriptor(
    name="tensorrt-rtx",
    cache="linear",
    buckets=BucketRule(min_tokens=1, token_multiple=1),
    precisions=("fp16", "bf16", "int8", "fp8", "int4"),
    kv_dtypes=("float16", "bfloat16"),
    engine="engine.rtx",
    on_cpu=False,
    left_out=("packed_texts",),
)
TENSORRT = replace(
    RTX,
    name="tensorrt",
    cache="paged",
    kv_dtypes=("float16", "bfloat16", "int8", "fp8"),
    engine="engine.plan",
)
_IR_VERSION = 13
"""The newest that the CPU runs, which compares the lowered graph with the one before."""


_FIRST_WITH_FP8 = (8, 9)
"""Compute capability."""


def _check_pools(target: TargetDescriptor, quantize: QuantizeRecipe) -> None:
    """Raises BadInput for pools of codes where caches are not paged, and for 16-bit pools of the other type."""
    codes = [dtype for dtype in target.kv_dtypes if dtype not in FLOATS.values()]
    pools = [FLOATS.get(quantize.precision, "float16"), *codes]
    if quantize.kv_dtype in pools:
        return
    message = (
        f"quantize.kv_dtype is {quantize.kv_dtype!r}; target {target.name!r} keeps caches in {', '.join(pools)} with "
        f"precision {quantize.precision}"
    )
    if quantize.kv_dtype not in FLOATS.values():
        message += ": its native attention takes no quantized cache. Target 'tensorrt' has a plugin that does"
    raise BadInput(message)


def _check_chips(quantize: QuantizeRecipe, chips: tuple[str, ...]) -> None:
    """Raises BadInput for chips without the arithmetic of the precision; the builder would say so after the export."""
    without = [chip for chip in chips if tuple(map(int, chip.split("."))) < _FIRST_WITH_FP8]
    if quantize.precision == "fp8" and without:
        raise BadInput(
            f"quantize.precision is 'fp8', and compute capability {', '.join(without)} has no FP8, which 8.9 and newer "
            "have; leave it out, or take int8"
        )


class TensorRtTarget:
    """One of the two, which share everything but the package, and what it builds for."""

    def __init__(self, descriptor: TargetDescriptor) -> None:
        self._descriptor = descriptor

    @property
    def descriptor(self) -> TargetDescriptor:
        """What the target can do."""
        return self._descriptor

    def check(self, recipe: Recipe) -> None:
        """Raises BadInput for numbers and GPUs that the target has not, a missing package, and rules on accuracy."""
        from pipeline.quantize.policy import policy_of

        from .bindings import load
        from .network import capability
        from .plugin_loading import plugin_files
        from .settings import check_builder

        name, quantize = self._descriptor.name, recipe.quantize
        policy_of(name, quantize.precision)  # refuses some with the reason
        if quantize.precision not in self._descriptor.precisions:
            raise BadInput(
                f"quantize.precision is {quantize.precision!r}; target {name!r} takes "
                f"{', '.join(self._descriptor.precisions)}"
            )
        _check_pools(self._descriptor, quantize)
        _check_chips(quantize, recipe.target.compute_capabilities)
        if recipe.accept.limits:
            raise BadInput(
                f"the recipe has rules on accuracy (accept), which are measured on an engine that runs; target "
                f"{name!r} is built only. Take the rules out, or build for target 'onnxruntime'"
            )
        check_builder(name, recipe.target.builder)
        if recipe.target.plugin_library is not None:
            plugin_files(recipe.target.plugin_library)
        if name == RTX.name:
            trt = load(name)
            for text in recipe.target.compute_capabilities:
                capability(trt, text)

    def lower(self, model: ir.Model, kind: Kind, settings: Lowering = AS_IT_IS) -> None:
        """Standard operators, in 16 bit; for a decoder the paged plugin, or caches without blocks.

        Raises BadInput for what these do not have, weights that do not fit the type, nodes that are
        left with mixed types, and what TensorRT would compute otherwise without a word.
        """
        from onnx_ir.passes import common as passes

        from pipeline.targets.native.linear import lower_to_linear
        from pipeline.targets.native.precision import narrow
        from pipeline.targets.native.standard import write_out

        from .attention import check_attention
        from .audit import check_kept, check_types
        from .plugin_attention import attention_to_plugins
        from .plugin_form import lower_to_plugins
        from .plugin_products import products_to_plugins

        precision: Precision = "bf16" if settings.precision == "bf16" else "fp16"
        if kind == "decoder" and self._descriptor.cache == "paged":
            lower_to_plugins(model, precision, settings.keep_float32)
        elif kind != "decoder" and settings.attention == "plugin":
            attention_to_plugins(model, precision, settings.keep_float32)
        else:
            if kind == "decoder":
                lower_to_linear(model, settings.max_length)
            else:
                write_out(model, keep=frozenset())
                passes.ShapeInferencePass()(
                    model
                )  # graphs of other tools may tell no types between their nodes
            narrow(model, precision, settings.keep_float32)
        if settings.int4_gemm == "plugin":
            products_to_plugins(model)
        check_kept(model, settings.keep_float32)
        check_types(model)
        check_attention(model)
        model.ir_version = min(model.ir_version, _IR_VERSION)

    def compile(
        self, lowered: Path, engine: Path, recipe: TargetRecipe, spec: EngineSpec | None = None
    ) -> Mapping[str, Any]:
        """The builder's engine, and its report (`record.build_record`).

        Raises BadInput: sizes without a bound, tensors that are too large, what the parser or the builder refuses, and
        for target tensorrt where the package is missing, after everything that needs no GPU has been gone through.
        """
        from pipeline.graph import load_graph

        from .builder import BuildOptions, build_engine, package_problem, parse_only
        from .limits import check_sizes
        from .plugin_loading import kernels_to_ask, kernels_to_run, plugin_names
        from .profiles import profiles_of
        from .record import build_record

        assert spec is not None
        name, model = self._descriptor.name, load_graph(lowered)
        profiles = profiles_of(model, spec, recipe)
        check_sizes(model, profiles)
        problem = package_problem(name) if name == TENSORRT.name else ""  # the other's was loaded in `check`
        plugins = plugin_names(model)
        if problem:
            version = parse_only(
                RTX.name, lowered, profiles, str(kernels_to_ask(plugins)) if plugins else None
            )
            raise BadInput(
                f"{lowered.name} is lowered, no node of it reads mixed types, and the parser of TensorRT-RTX {version} "
                f"takes it with the profiles {', '.join(profile.name for profile in profiles)}. What is left is the "
                f"build itself: {problem}"
            )
        library = recipe.plugin_library if plugins else None
        options = BuildOptions(
            recipe.compute_capabilities,
            plugin_library=library,
            kernels=str(kernels_to_run()) if plugins and library is None else None,
            builder=recipe.builder,
        )
        built = build_engine(name, lowered, engine, profiles, options)
        return build_record(name, model, profiles, options, built)

    def requirements(self) -> list[Problem]:
        """The package, of the version that this code is written for."""
        from .bindings import PACKAGES
        from .builder import package_problem

        problem = package_problem(self._descriptor.name)
        return [Problem(problem, PACKAGES[self._descriptor.name].remedy)] if problem else []
