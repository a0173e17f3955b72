"""The demo model quantized by Slipway, ModelOpt and ONNX Runtime's quantizer: perplexity on the same held-out text.

    python -m bench.quantizers DIR [--modelopt PYTHON] [--tokens 8000] [--samples 16] [--only int4-32 ...]

DIR is a folder that slipway built of the demo model. All calibrate on the same samples. Every linear layer is quantized
(the head and the embedding tied to it too). PYTHON is the interpreter of an environment with ModelOpt:
`python3.11 -m venv DIR; DIR/bin/pip install torch==2.13.0 transformers nvidia-modelopt==0.47.0 requests tqdm`.
Writes bench/results/quantizers.json; rows of schemes that `--only` leaves out, and ModelOpt's without its interpreter,
stay as they are.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.quantizers_onnxruntime import QUANTIZERS, plain_graph
from calibration.activations import graph_session, observable
from calibration.batches import Batches
from calibration.report.heldout import HELDOUT_FILE, WINDOW, windows
from calibration.report.language import compare_language
from calibration.report.subject import Subject
from pipeline import Recipe, build
from pipeline.steps.calibrate import samples_of, tokenizer_of
from pipeline.steps.context import BuildContext
from pipeline.workspace import FUSED, QUANTIZED, RECIPE, Workspace

RESULTS = Path(__file__).parent / "results" / "quantizers.json"
CHECKPOINT = Path(__file__).parents[1] / "demo" / "model"
RUN = Path(__file__).with_name("quantizers_modelopt.py")
OURS: dict[str, dict[str, tuple[str, str, bool]]] = {
    "fp8": {"nearest": ("fp8", "rtn", False), "rotated": ("fp8", "rtn", True)},
    "int8": {
        "per token, nearest": ("int8", "rtn", False),
        "per token, smoothquant": ("int8", "smoothquant", False),
    },
    "int4-32": {
        "nearest": ("int4", "rtn", False),
        "awq": ("int4", "awq", False),
        "gptq": ("int4", "gptq", False),
        "nearest, asymmetric": ("int4-asymmetric", "rtn", False),
        "awq, asymmetric": ("int4-asymmetric", "awq", False),
        "gptq, asymmetric": ("int4-asymmetric", "gptq", False),
        "rotated, nearest": ("int4", "rtn", True),
        "rotated, gptq": ("int4", "gptq", True),
    },
    "w4a8": {
        "nearest": ("w4a8", "rtn", False),
        "gptq": ("w4a8", "gptq", False),
        "rotated, nearest": ("w4a8", "rtn", True),
        "rotated, gptq": ("w4a8", "gptq", True),
    },
}
"""Scheme -> row -> precision, algorithm and whether the residual stream is rotated."""
MODELOPT: dict[str, tuple[str, ...]] = {
    "fp8": ("fp8 max",),
    "int8": ("int8 static max", "int8 static smoothquant"),
    "int4-32": ("int4-32 max", "int4-32 awq_lite"),
}


class Bench:
    """What all have in common: samples, text, and the float graph's perplexity."""

    def __init__(self, folder: Path, tokens: int, samples: int) -> None:
        recipe = Recipe.load(folder / RECIPE)
        self.recipe = replace(recipe, calibrate=replace(recipe.calibrate, samples=samples))
        self.folder = folder
        context = BuildContext(self.recipe, Workspace(folder), exports=False)
        tokenizer = tokenizer_of(context)
        assert tokenizer is not None
        self.facts = context.facts
        self.calibration: list[list[int]] = [list(map(int, item)) for item in samples_of(context).items]
        self.heldout = windows(HELDOUT_FILE, tokenizer, min(WINDOW, self.facts.max_length), tokens)
        self.float32 = self.perplexity(folder / FUSED)

    def perplexity(self, graph: Path) -> float:
        """Of a decoder's graph."""
        subject = Subject(graph.stem, graph_session(observable(graph), graph.parent, 0), 0, self.facts.kv)
        return float(compare_language(subject, None, self.heldout, self.facts.vocab_size)["perplexity"])

    def ours(self, scheme: str, work: Path) -> Iterator[tuple[str, float]]:
        """Rows of a scheme, each made by the stages of a build."""
        folder = work / "build"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.folder, folder, ignore=shutil.ignore_patterns("repository"))
        for name, (precision, algorithm, rotated) in OURS[scheme].items():
            recipe = replace(
                self.recipe,
                fuse=replace(self.recipe.fuse, rotate=rotated),
                quantize=replace(
                    self.recipe.quantize, precision=precision, algorithm=algorithm, kv_dtype="float32"
                ),
            )
            stages = ("fuse", "calibrate", "quantize") if precision == "fp8" else ("fuse", "quantize")
            build(recipe, folder, stages=stages)
            yield name, self.perplexity(folder / QUANTIZED)

    def onnxruntime(self, scheme: str, work: Path) -> Iterator[tuple[str, float]]:
        """ONNX Runtime's own quantizers on the fused graph."""
        graph = plain_graph(self.folder / FUSED, work / "plain.onnx")
        for name, make in QUANTIZERS.get(scheme, {}).items():
            made = make(graph, work / "quantized.onnx", Batches(self.facts, self.calibration))
            yield name, self.perplexity(made)

    def modelopt(self, python: str, scheme: str, work: Path) -> Iterator[tuple[str, float]]:
        """ModelOpt's on the torch module, in its own environment."""
        data = work / "data.json"
        data.write_text(
            json.dumps({"calibration": self.calibration, "heldout": self.heldout}), encoding="utf-8"
        )
        if scheme not in MODELOPT:
            return
        command = [python, "-P", str(RUN), str(CHECKPOINT), str(data), *MODELOPT[scheme]]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"ModelOpt ended with exit code {done.returncode}:\n{done.stderr[-2000:]}")
        for line in done.stdout.splitlines():
            yield from json.loads(line).items()


def _kept(
    path: Path, about: dict[str, Any], schemes: Sequence[str], quantizers: Collection[str]
) -> list[dict[str, Any]]:
    """Rows that are not measured anew, of an earlier run on the same data."""
    if not path.is_file():
        return []
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    rows: list[dict[str, Any]] = known.pop("rows")
    if known != about:
        return []
    return [row for row in rows if row["scheme"] not in schemes or row["quantizer"] not in quantizers]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--modelopt", help="Python of an environment with ModelOpt")
    parser.add_argument("--tokens", type=int, default=8000, help="of held-out text")
    parser.add_argument("--samples", type=int, default=16, help="calibration samples")
    parser.add_argument("--only", nargs="*", choices=list(OURS), default=list(OURS))
    parser.add_argument("--json", type=Path, default=RESULTS)
    options = parser.parse_args()
    bench = Bench(options.folder, options.tokens, options.samples)
    about = {
        "calibration_tokens": sum(map(len, bench.calibration)),
        "heldout_tokens": sum(len(window) - 1 for window in bench.heldout),
        "float32_perplexity": bench.float32,
    }
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        by_quantizer: dict[str, Callable[[str], Iterator[tuple[str, float]]]] = {
            "slipway": lambda scheme: bench.ours(scheme, work),
            "ONNX Runtime": lambda scheme: bench.onnxruntime(scheme, work),
        }
        if options.modelopt:
            by_quantizer["ModelOpt"] = lambda scheme: bench.modelopt(options.modelopt, scheme, work)
        rows = _kept(options.json, about, options.only, by_quantizer)
        for scheme in options.only:
            for quantizer, run in by_quantizer.items():
                for name, perplexity in run(scheme):
                    increase = perplexity / bench.float32 - 1
                    rows.append(
                        {"scheme": scheme, "quantizer": quantizer, "algorithm": name, "increase": increase}
                    )
                    print(f"{scheme} {quantizer} {name}: {increase:+.2%}", flush=True)
                    content = json.dumps({**about, "rows": rows}, indent=2)
                    options.json.write_text(content + "\n", encoding="utf-8")
    table = Table("scheme", "quantizer", "algorithm", "perplexity", title=str(about), title_justify="left")
    for row in rows:
        table.add_row(row["scheme"], row["quantizer"], row["algorithm"], f"{row['increase']:+.2%}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
