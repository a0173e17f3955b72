"""The ONNX Runtime target: the compiled engine gives the fused graph's numbers and holds no weight twice."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from model_repo.runtime.errors import BadInput
from pipeline.fuse import fuse
from pipeline.fuse.weights import read_origin
from pipeline.graph import load_graph, save_graph
from pipeline.recipe import FuseRecipe, TargetRecipe
from pipeline.targets import get_target
from plugins.cpu.build import registered
from tests.fuse.exported import LAYERS, MAX_LENGTH, Exported, exported_llama
from tests.fuse.graphs import assert_same, graph, operators, random, run, run_on_cpu

TARGET = get_target("onnxruntime")


class Compiled:
    """A tiny Llama, fused, lowered and compiled in one folder."""

    def __init__(self, exported: Exported, folder: Path) -> None:
        self.exported = exported
        model = exported.load()
        fuse(model, FuseRecipe(), max_length=MAX_LENGTH)
        self.fused = save_graph(model, folder / "fuse.onnx").graph
        TARGET.lower(model, "decoder")
        self.lowered = save_graph(model, folder / "lower.onnx").graph
        self.weights_before = set((folder / "weights").iterdir())
        self.engine = folder / "engine.onnx"
        TARGET.compile(self.lowered, self.engine, TargetRecipe())


@pytest.fixture(scope="module", params=["grouped, tied", "biased, untied, llama3 scaling"])
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    return Compiled(exported_llama(request.param), tmp_path_factory.mktemp("model"))


def session(engine: Path) -> ort.InferenceSession:
    """As the runtime loads an engine: nothing is optimized any more."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    registered(options)
    return ort.InferenceSession(engine, options, providers=["CPUExecutionProvider"])


def test_the_engine_gives_the_fused_graphs_numbers_and_writes_the_pools(compiled: Compiled) -> None:
    inputs = compiled.exported.step()
    expected = run(load_graph(compiled.fused), **inputs)
    before = {name: array.copy() for name, array in inputs.items()}
    engine = session(compiled.engine)
    assert [value.name for value in engine.get_outputs()] == ["logits"]
    (logits,) = engine.run(None, inputs)
    assert_same({"logits": expected["logits"]}, {"logits": logits}, tolerance=1e-5)
    for layer in range(LAYERS):
        for kind in ("key", "value"):
            written = inputs[f"{kind}_cache_{layer}"]
            np.testing.assert_allclose(written, expected[f"{kind}_cache_out_{layer}"], atol=1e-5)
            assert not np.array_equal(written, before[f"{kind}_cache_{layer}"])


def test_a_layer_of_the_engine_is_eight_nodes(compiled: Compiled) -> None:
    engine = operators(load_graph(compiled.engine))
    tied = "lm_head.weight" not in compiled.exported.parameters
    products = 4 * LAYERS + 1
    assert engine["MatMul"] + engine["Gemm"] + engine["FusedMatMul"] == products
    assert engine["PagedAttention"] == engine["SwiGLU"] == LAYERS
    assert engine["SkipRMSNormalization"] == 2 * LAYERS
    assert engine["Gather"] == 2
    if tied:
        assert engine["FusedMatMul"] == 1
        assert sum(engine.values()) == 8 * LAYERS + 4
    assert "Transpose" not in engine


def test_the_engine_adds_no_weight_to_the_folder(compiled: Compiled) -> None:
    assert set((compiled.engine.parent / "weights").iterdir()) == compiled.weights_before
    model = load_graph(compiled.engine)
    names = Counter(
        value.const_value.location
        for value in model.graph.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor)
    )
    assert max(names.values()) == 1
    files = {path.name for path in compiled.engine.parent.iterdir()}
    assert files == {"fuse.onnx", "lower.onnx", "engine.onnx", "weights"}


def test_weights_of_the_engine_still_know_their_parameters(compiled: Compiled) -> None:
    model = load_graph(compiled.engine)
    found = {origin.parameter for value in model.graph.initializers.values() for origin in read_origin(value)}
    assert found == set(compiled.exported.parameters)


def test_a_request_gets_the_same_bits_alone_and_in_company(compiled: Compiled) -> None:
    engine = session(compiled.engine)
    together = compiled.exported.step()
    (both,) = engine.run(None, together)
    alone = compiled.exported.step()
    rows = slice(3, 5)  # the second sequence
    for name in ("input_ids", "position_ids", "slot_mapping"):
        alone[name] = alone[name][rows]
    alone |= {
        "cu_seqlens": np.array([0, 2], np.int32),
        "past_lens": alone["past_lens"][1:],
        "block_table": alone["block_table"][1:],
        "logits_indices": np.array([1], np.int32),
    }
    (one,) = engine.run(None, alone)
    np.testing.assert_array_equal(one[0], both[0])


@pytest.mark.parametrize("operator", ["MatMul", "Gemm", "FusedMatMul"])
@pytest.mark.parametrize(("inner", "width"), [(64, 50), (576, 960)])
def test_rows_of_a_product_do_not_depend_on_how_many_there_are(
    operator: str, inner: int, width: int, tmp_path: Path
) -> None:
    weight = random(inner, width) if operator == "MatMul" else random(width, inner)
    rows, columns = weight.shape
    body = "MatMul(x, w)" if operator == "MatMul" else "Gemm<transB=1>(x, w)"
    model = graph(
        f"g (float[n, {inner}] x, float[{rows}, {columns}] w) => (float[n, {width}] y) {{ y = {body} }}",
        w=weight,
    )
    if operator == "FusedMatMul":
        TARGET.lower(model, "encoder")
        assert operators(model) == {"FusedMatMul": 1}
    path = save_graph(model, tmp_path / "g.onnx").graph
    engine, x = session(path), random(130, inner, seed=1)
    (whole,) = engine.run(None, {"x": x})
    for count in (1, 2, 3, 5, 16, 64):
        np.testing.assert_array_equal(engine.run(None, {"x": x[:count]})[0], whole[:count])


@pytest.mark.parametrize(
    "product",
    [
        "Gemm(x, w)",
        "Gemm<transB=1>(x, w, b)",
        "Gemm<transB=1, alpha=2.0>(x, w)",
        "Gemm<transA=1, transB=1>(x, w)",
    ],
)
def test_products_of_another_kind_stay(product: str) -> None:
    text = f"g (float[12, 12] x, float[12, 12] w, float[12] b) => (float[12, 12] y) {{ y = {product} }}"
    model = graph(text, w=random(12, 12, seed=1), b=random(12))
    TARGET.lower(model, "encoder")
    assert operators(model) == {"Gemm": 1}


def test_a_product_with_a_transposed_weight_keeps_its_numbers_and_name() -> None:
    model = graph(
        "g (float[n, 12] x, float[20, 12] w) => (float[n, 20] y, float[n, 20] z) {"
        " y = Gemm<transB=1>(x, w) z = Neg(y) }",
        w=random(20, 12, seed=1),
    )
    x = random(5, 12)
    before = run(model, x=x)
    assert_same(before, run_on_cpu(model, x=x), 1e-5)
    assert operators(model) == {"FusedMatMul": 1, "Neg": 1}


ENCODER = (
    "g (float[batch, length, 32] x, float[32, 64] up, float[64] up_bias, float[64, 32] down,"
    " float[32] down_bias, float[32] scale, float[32] shift, float eighth) => (float[batch, length, 32] y) {"
    " t = Transpose<perm=[0, 2, 1]>(x) s = MatMul(x, t) scaled = Mul(s, eighth) p = Softmax(scaled)"
    " z = MatMul(p, x) a = MatMul(z, up) b = Add(a, up_bias) c = Gelu(b) d = MatMul(c, down)"
    " e = Add(d, down_bias) f = Add(e, x) y = LayerNormalization<axis=-1, epsilon=0.000001>(f, scale, shift) }"
)


def encoder_weights() -> dict[str, np.ndarray]:
    return {
        "up": random(32, 64, seed=1),
        "up_bias": random(64, seed=2),
        "down": random(64, 32, seed=3),
        "down_bias": random(32, seed=4),
        "scale": random(32, seed=5),
        "shift": random(32, seed=6),
        "eighth": np.float32(0.125).reshape(()),
    }


def test_encoders_get_onnxruntimes_own_fusions(tmp_path: Path) -> None:
    model = graph(ENCODER, **encoder_weights())
    x = random(2, 5, 32)
    before = run(model, x=x)
    TARGET.lower(model, "encoder")
    lowered = save_graph(model, tmp_path / "lower.onnx").graph
    TARGET.compile(lowered, tmp_path / "engine.onnx", TargetRecipe())
    assert operators(load_graph(tmp_path / "engine.onnx")) == {
        "FusedMatMul": 1,  # transposition and scale in one
        "Softmax": 1,
        "MatMul": 3,
        "Add": 3,
        "Gelu": 1,
        "LayerNormalization": 1,
    }
    (y,) = session(tmp_path / "engine.onnx").run(None, {"x": x})
    assert_same(before, {"y": y}, tolerance=1e-5)


def test_an_operator_without_a_kernel_is_refused() -> None:
    model = graph("g (float[n] x) => (float[n] y) { y = slipway.Conv(x) }")
    with pytest.raises(BadInput, match=r"slipway::Conv.*PagedAttention, SkipRMSNormalization, SwiGLU"):
        TARGET.lower(model, "decoder")


def test_a_graph_that_does_not_run_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    model = graph(
        "g (float[n, 4] x, float[3, 5] w) => (float[n, 5] y) { y = MatMul(x, w) }".replace(
            "[3, 5] w", "[4, 5] w"
        ),
        w=random(4, 5),
    )
    model.graph.initializers["w"].const_value = ir.tensor(random(3, 5), name="w")
    lowered = save_graph(model, tmp_path / "lower.onnx").graph
    files = set(tmp_path.iterdir())
    with pytest.raises(BadInput, match=r"ONNX Runtime does not take lower\.onnx"):
        TARGET.compile(lowered, tmp_path / "engine.onnx", TargetRecipe())
    assert set(tmp_path.iterdir()) == files


def test_weights_that_stay_are_not_written_again_and_others_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`folded` is computed from constants; `stays` is multiplied as it is."""
    written: list[int] = []

    class Counted(tempfile.TemporaryDirectory):  # type: ignore[type-arg]
        def cleanup(self) -> None:
            written.append(sum(path.stat().st_size for path in Path(self.name).rglob("*")))
            super().cleanup()

        def __exit__(self, *error: object) -> None:
            self.cleanup()

    stays, turned = random(64, 640), random(640, 32)
    model = graph(
        """g (float[n, 64] x, float[64, 640] stays, float[640, 32] turned, float[32] shift) => (float[n, 32] y) {
            folded = Sub(turned, shift)
            h = MatMul(x, stays)
            y = MatMul(h, folded)
        }""",
        stays=stays,
        turned=turned,
        shift=np.full(32, 0.5, np.float32),
    )
    lowered = save_graph(model, tmp_path / "lower.onnx").graph
    before = set((tmp_path / "weights").iterdir())
    monkeypatch.setattr(tempfile, "TemporaryDirectory", Counted)
    TARGET.compile(lowered, tmp_path / "engine.onnx", TargetRecipe())
    (bytes_written,) = written
    assert turned.nbytes < bytes_written < turned.nbytes + stays.nbytes / 10
    (added,) = set((tmp_path / "weights").iterdir()) - before
    assert added.stat().st_size == turned.nbytes
    x = random(3, 64)
    (y,) = session(tmp_path / "engine.onnx").run(None, {"x": x})
    np.testing.assert_allclose(y, x @ stays @ (turned - np.float32(0.5)), rtol=1e-3, atol=1e-3)


def test_nothing_is_missing_where_the_plugin_was_built() -> None:
    assert TARGET.requirements() == []


def test_a_missing_compiler_is_a_problem_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    (problem,) = TARGET.requirements()
    assert "no-such-compiler" in problem.what
    assert "g++" in problem.remedy


def test_fusing_and_compiling_hold_at_most_three_times_the_weights(tmp_path: Path) -> None:
    layers, size = 6, 1536
    save_graph(_gated_layers(layers, size), tmp_path / "export.onnx")
    program = textwrap.dedent(
        f"""
        import resource, sys
        from pathlib import Path
        from pipeline.fuse import fuse
        from pipeline.graph import load_graph, save_graph
        from pipeline.recipe import FuseRecipe, TargetRecipe
        from pipeline.targets import get_target
        import onnxruntime
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        folder, before = Path({str(tmp_path)!r}), peak()
        model = load_graph(folder / "export.onnx")
        report = fuse(model, FuseRecipe(), max_length=None)
        save_graph(model, folder / "fuse.onnx")
        target = get_target("onnxruntime")
        target.lower(model, "encoder")
        save_graph(model, folder / "lower.onnx")
        target.compile(folder / "lower.onnx", folder / "engine.onnx", TargetRecipe())
        print("matched", report.rule("gate_up").matched, "bytes", peak() - before)
        """
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    matched, used = map(int, re.findall(r"matched (\d+) bytes (\d+)", result.stdout)[0])
    weights = (
        sum(path.stat().st_size for path in (tmp_path / "weights").iterdir()) // 2
    )  # exported, and fused
    assert matched == layers
    assert weights > 100 * 2**20
    assert used <= 3 * weights


def _gated_layers(layers: int, size: int) -> ir.Model:
    """x = silu(x @ gate) * (x @ up), over and over: 2 * layers weights of size * size float32."""
    weights: dict[str, Any] = {}
    inputs, body = [f"float[n, {size}] x0"], ""
    for i in range(layers):
        for part in ("gate", "up"):
            weights[f"{part}{i}"] = np.full((size, size), i + 0.5, np.float32)
            inputs.append(f"float[{size}, {size}] {part}{i}")
        body += (
            f" a{i} = MatMul(x{i}, gate{i}) b{i} = MatMul(x{i}, up{i}) s{i} = Sigmoid(a{i})"
            f" t{i} = Mul(a{i}, s{i}) x{i + 1} = Mul(t{i}, b{i})"
        )
    # No two weights may be equal, or their file would be shared.
    for number, array in enumerate(weights.values()):
        array[0, 0] = number
    return graph(f"g ({', '.join(inputs)}) => (float[n, {size}] x{layers}) {{ {body} }}", **weights)
