"""ONNX Runtime on a GPU: a decoder's attention is com.microsoft.PagedAttention, all else 16-bit operators.

The lowered graph with its weights is the engine: ONNX Runtime optimizes it for the GPU as it loads it, which cannot be
done where none is. The graph is compared on a CPU before (attention by the project's own operator) and held against the
operators' schemas, which ONNX Runtime's CPU package has too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_repo.runtime.errors import BadInput
from pipeline.recipe import FLOATS, Recipe, TargetRecipe

from .base import AS_IT_IS, BucketRule, Kind, Lowering, Problem, TargetDescriptor

if TYPE_CHECKING:
    import onnx_ir as ir

    from model_repo.runtime.contract import EngineSpec
    from pipeline.precision.plan import Precision

DESCRIPTOR = TargetDescriptor(
    name="onnxruntime-cuda",
    cache="paged",
    buckets=BucketRule(min_tokens=1, token_multiple=1),
    precisions=("fp16", "bf16"),
    kv_dtypes=("float16", "bfloat16", "int8", "fp8"),
    on_cpu=False,
    left_out=("packed_texts",),
)
_IR_VERSION = 13
"""The newest that ONNX Runtime 1.31 reads."""
_NO_CODES = (
    "ONNX Runtime's CUDA provider computes products of codes by writing them out as floats first; take fp16 or bf16 "
    "here, or target 'tensorrt'"
)


class OnnxRuntimeCudaTarget:
    """See the module."""

    @property
    def descriptor(self) -> TargetDescriptor:
        """What the target can do."""
        return DESCRIPTOR

    def check(self, recipe: Recipe) -> None:
        """Raises BadInput for numbers that the target has not, and for rules on accuracy."""
        name, quantize = DESCRIPTOR.name, recipe.quantize
        if quantize.precision not in DESCRIPTOR.precisions:
            reason = "it computes in 16 bit" if quantize.precision == "fp32" else _NO_CODES
            raise BadInput(
                f"quantize.precision is {quantize.precision!r}; target {name!r} does not take it: {reason}"
            )
        pools = (FLOATS[quantize.precision], "int8", "fp8")
        if quantize.kv_dtype not in pools:
            raise BadInput(
                f"quantize.kv_dtype is {quantize.kv_dtype!r}; target {name!r} keeps caches in {', '.join(pools)} "
                f"with precision {quantize.precision}"
            )
        if recipe.accept.limits:
            raise BadInput(
                f"the recipe has rules on accuracy (accept), which are measured on an engine that runs where it is "
                f"built; target {name!r} takes a GPU. Take the rules out, or build for target 'onnxruntime'"
            )

    def lower(self, model: ir.Model, kind: Kind, settings: Lowering = AS_IT_IS) -> None:
        """Standard operators in 16 bit, and for a decoder com.microsoft.PagedAttention, which writes to its pools.

        Raises BadInput for operators, and for features of attention, that the CUDA provider does not have, and for
        weights that do not fit the type.
        """
        from onnx_ir.passes import common as passes

        from plugins.pools import drop_pool_outputs
        from plugins.schemas import PAGED_ATTENTION

        from .contrib_attention import lower_to_contrib
        from .native.precision import narrow
        from .native.standard import write_out
        from .native.step_inputs import check_step_inputs
        from .native.wanted_rows import choose_rows_early
        from .schema_check import check_schemas

        precision: Precision = "bf16" if settings.precision == "bf16" else "fp16"
        decoder = kind == "decoder"
        if decoder:
            check_step_inputs(model, "onnxruntime-cuda")
            drop_pool_outputs(model)
        write_out(model, keep=frozenset({PAGED_ATTENTION.name} if decoder else ()))
        passes.ShapeInferencePass()(model)
        if decoder:
            choose_rows_early(model)
            lower_to_contrib(model, precision)
        else:
            narrow(model, precision)
        _simplify_norms(model)
        check_schemas(model)
        model.ir_version = min(model.ir_version, _IR_VERSION)

    def compile(
        self, lowered: Path, engine: Path, recipe: TargetRecipe, spec: EngineSpec | None = None
    ) -> Mapping[str, Any]:
        """The lowered graph itself. Raises BadInput for blocks of a size that attention does not take."""
        from pipeline.graph import load_graph, save_graph

        from .contrib_attention import check_blocks

        model = load_graph(lowered)
        check_blocks(model, recipe.block_size)
        save_graph(model, engine)
        return {"optimized": "by ONNX Runtime, where the engine is loaded"}

    def requirements(self) -> list[Problem]:
        """ONNX Runtime's CPU package, whose schemas graphs are held against; a GPU is needed to run them only."""
        try:
            import onnxruntime  # noqa: F401
        except ImportError as error:
            return [Problem(f"onnxruntime cannot be imported: {error}", "pip install onnxruntime")]
        return []


def _simplify_norms(model: ir.Model) -> None:
    """RMSNormalization over the last axis becomes SimplifiedLayerNormalization, in place.

    ONNX Runtime has that one for CUDA in both 16-bit types, and joins it with the sum before it.
    """
    from pipeline.fuse.matching import dims, integer_attribute

    for node in model.graph:
        if node.op_type != "RMSNormalization" or node.domain != "":
            continue
        axis, rank = integer_attribute(node, "axis", -1), len(dims(node.inputs[0]) or ())
        if axis == -1 or axis == rank - 1:
            node.op_type = "SimplifiedLayerNormalization"
