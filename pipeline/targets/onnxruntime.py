"""ONNX Runtime on a CPU: the default target where there is no GPU.

Attention, residual normalization and SwiGLU run as the project's own operators (`plugins/cpu`). The engine is
an ONNX graph that ONNX Runtime has optimized offline, so that the runtime loads it with nothing left to do but the
layout of convolutions, which is each machine's own.
Products with constant weights run in MLAS on packed weights, whose rows do not depend on how many there are
(tested; seen on AVX-512 and on emulated AVX2): a request gets the same bits alone and in company, and steps
need no padding.
"""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_repo.runtime.errors import BadInput

from .base import AS_IT_IS, BucketRule, Kind, Lowering, Problem, TargetDescriptor

if TYPE_CHECKING:
    import onnx_ir as ir
    import onnxruntime as ort

    from model_repo.runtime.contract import EngineSpec
    from pipeline.recipe import Recipe, TargetRecipe

DESCRIPTOR = TargetDescriptor(
    name="onnxruntime",
    cache="paged",
    buckets=BucketRule(min_tokens=1, token_multiple=1),
    precisions=("fp32", "int8", "int8-weights", "fp8", "int4", "int4-asymmetric", "w4a8", "mixed"),
    kv_dtypes=("float32", "int8", "fp8"),
)
_IR_VERSION = 13
"""The newest that ONNX Runtime 1.31 reads; onnx 1.23 writes 14, whose additions no operator of ours needs."""
_OPTIMIZED = "optimized.onnx"
_OPTIMIZED_WEIGHTS = "optimized.data"
_INLINE_BYTES = 1024


class OnnxRuntimeTarget:
    """See the module."""

    @property
    def descriptor(self) -> TargetDescriptor:
        """What the target can do."""
        return DESCRIPTOR

    def check(self, recipe: Recipe) -> None:
        """Raises BadInput for arithmetic, and for pools, that this target has not."""
        from pipeline.quantize.policy import policy_of

        policy_of(DESCRIPTOR.name, recipe.quantize.precision)
        if recipe.quantize.kv_dtype not in DESCRIPTOR.kv_dtypes:
            raise BadInput(
                f"quantize.kv_dtype is {recipe.quantize.kv_dtype!r}; target {DESCRIPTOR.name!r} has pools of "
                f"{', '.join(DESCRIPTOR.kv_dtypes)}"
            )

    def lower(self, model: ir.Model, kind: Kind, settings: Lowering = AS_IT_IS) -> None:
        """Drops the pools from a decoder's outputs, and names products as ONNX Runtime's fastest kernels are.

        Raises BadInput for operators that have no kernel here.
        """
        from plugins.pools import drop_pool_outputs

        from .convolutions import lower_convolutions
        from .quantized import lower_products
        from .quantized_blocks import lower_zero_points
        from .quantized_experts import lower_experts

        lower_products(model)
        lower_zero_points(model)
        lower_experts(model)
        lower_convolutions(model)
        _multiply_by_rows(model)
        if kind == "decoder":
            drop_pool_outputs(model)
        _check_operators(model)
        model.ir_version = min(model.ir_version, _IR_VERSION)

    def compile(
        self, lowered: Path, engine: Path, recipe: TargetRecipe, spec: EngineSpec | None = None
    ) -> Mapping[str, Any]:
        """ONNX Runtime's own offline optimization, up to level EXTENDED, without what makes graphs slower.

        The optimized graph refers to the weights of `lowered` where they are unchanged, so that only weights
        that ONNX Runtime rearranged are written. Raises BadInput when `lowered` is no graph that it can run.
        """
        from pipeline.graph import load_graph, save_graph

        with _optimized(lowered, engine) as optimized:
            _refer_to_known_weights(optimized, load_graph(lowered))
            save_graph(optimized, engine)
        _check_kernels(engine, lowered)
        return {}

    def requirements(self) -> list[Problem]:
        """A C++ compiler, and ONNX Runtime."""
        from plugins.cpu.build import find_compiler

        problems = []
        try:
            import onnxruntime  # noqa: F401
        except ImportError as error:
            problems.append(Problem(f"onnxruntime cannot be imported: {error}", "pip install onnxruntime"))
        try:
            find_compiler()
        except BadInput as error:
            problems.append(Problem(str(error), "install g++"))
        return problems


def _multiply_by_rows(model: ir.Model) -> None:
    """Products with a transposed weight and nothing added (Gemm) become com.microsoft.FusedMatMul.

    For few rows, as a decode step has, the latter took 7 to 40% less time in ONNX Runtime 1.31.
    """
    import onnx_ir as ir

    plain = {"transA": 0, "transB": 1, "alpha": 1.0}
    for node in list(model.graph):
        if node.op_type != "Gemm" or node.domain != "" or len([x for x in node.inputs if x is not None]) != 2:
            continue
        given = {"transB": 0} | {name: node.attributes[name].value for name in node.attributes}
        if any(given.get(name, wanted) != wanted for name, wanted in plain.items()):
            continue
        old = node.outputs[0]
        product = ir.node(
            "FusedMatMul",
            node.inputs[:2],
            {"transB": 1},
            domain="com.microsoft",
            outputs=[ir.Value(name=f"{old.name}_product", type=old.type, shape=old.shape)],
            name=node.name,
            metadata_props=dict(node.metadata_props),
        )
        graph = model.graph
        graph.insert_before(node, product)
        new, name = product.outputs[0], old.name
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        graph.remove(node)
        new.name = name
        model.opset_imports["com.microsoft"] = 1


def _check_operators(model: ir.Model) -> None:
    """Raises BadInput for operators of unknown domains: nothing here runs them."""
    from plugins.schemas import DOMAIN, OPERATORS

    for node in model.graph.all_nodes():
        known = node.domain in ("", "ai.onnx", "com.microsoft") or (
            node.domain == DOMAIN and node.op_type in OPERATORS
        )
        if not known:
            raise BadInput(
                f"the graph holds {node.domain}::{node.op_type} (node {node.name!r}), which target "
                f"'onnxruntime' cannot run; it knows standard operators and {', '.join(OPERATORS)} of {DOMAIN}"
            )


@contextmanager
def _optimized(lowered: Path, engine: Path) -> Iterator[ir.Model]:
    """The graph at `lowered` as ONNX Runtime optimizes it, through files beside `engine` that go away.

    Weights that ONNX Runtime leaves as they are keep the places in files that they have in `lowered`; they are not
    written again.
    """
    import onnx_ir as ir
    import onnxruntime as ort

    from model_repo.runtime.onnxruntime_executor import SLOWER

    with tempfile.TemporaryDirectory(dir=engine.parent, prefix=f"{engine.name}.") as name:
        path, weights = Path(name) / _OPTIMIZED, Path(name) / _OPTIMIZED_WEIGHTS
        options = _options()
        options.add_provider("CPUExecutionProvider", {})
        for key, value in {
            "optimization.disable_specified_optimizers": ";".join(SLOWER),
            # Weights packed for this machine's instructions are made where the engine is loaded.
            "session.disable_prepacking": "1",
            # Quantized products are lowered already; what is left simulates formats without kernels (E4M3).
            "session.disable_quant_qdq": "1",
        }.items():
            options.add_session_config_entry(key, value)
        with weights.open("wb") as made:

            def place(_: str, weight: ort.OrtValue, known: Any) -> Any:
                """Where a weight lies; None for one that the graph itself holds."""
                size = weight.tensor_size_in_bytes()
                if known is not None or size < _INLINE_BYTES:
                    return known
                start = made.tell()
                made.write((ctypes.c_char * size).from_address(weight.data_ptr()))
                return ort.OrtExternalInitializerInfo(_OPTIMIZED_WEIGHTS, start, size)

            try:
                ort.ModelCompiler(
                    options,
                    str(lowered),
                    graph_optimization_level=ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
                    get_initializer_location_func=place,
                ).compile_to_file(str(path))
            except Exception as error:  # ONNX Runtime's errors share no base of their own
                raise BadInput(f"ONNX Runtime does not take {lowered.name}: {error}") from error
        yield ir.load(path)


def _check_kernels(engine: Path, lowered: Path) -> None:
    """Raises BadInput where a node has no kernel for its types: ONNX Runtime's compiler asks for none, loading does.

    Weights are left out, so that they take no memory; what a kernel says of a weight that is missing does not count.
    """
    import onnx_ir as ir
    import onnxruntime as ort
    from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel

    from .schema_check import without_weights

    options = _options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        ort.InferenceSession(
            ir.to_proto(without_weights(engine)).SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
        )
    except NoKernel as error:
        raise BadInput(f"ONNX Runtime does not take {lowered.name}: {error}") from error
    except Exception:  # its other errors share no base; a weight that has to be constant is none here
        return


def _options() -> ort.SessionOptions:
    """Session options that know the project's operators and report errors only."""
    import onnxruntime as ort

    from plugins.cpu.build import registered

    options = ort.SessionOptions()
    options.log_severity_level = 3
    registered(options)
    return options


def _refer_to_known_weights(optimized: ir.Model, lowered: ir.Model) -> None:
    """Initializers that both graphs have become references to the files of `lowered`, with their origin."""
    known = lowered.graph.initializers
    placed = {_place(value.const_value): value for value in known.values()}
    placed.pop(None, None)
    for name, value in optimized.graph.initializers.items():
        new = value.const_value
        place = _place(new)
        for before in (known.get(name), placed.get(place)):
            if before is None:
                continue
            old = before.const_value
            if _place(old) == place if place in placed else _equal(old, new):
                value.const_value = old
                value.metadata_props.update(before.metadata_props)
                break


def _place(tensor: ir.TensorProtocol | None) -> tuple[str, int] | None:
    """The file, as the graph names it, and the first byte; None for a tensor that lies in the graph."""
    import onnx_ir as ir

    return (str(tensor.location), tensor.offset or 0) if isinstance(tensor, ir.ExternalTensor) else None


def _equal(one: ir.TensorProtocol | None, other: ir.TensorProtocol | None) -> bool:
    import numpy as np

    if one is None or other is None or one.dtype != other.dtype or one.shape != other.shape:
        return False
    return bool(np.array_equal(one.numpy(), other.numpy()))
