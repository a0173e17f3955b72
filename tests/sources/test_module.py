"""`package.module:function`: found without being run, and every way in which a user's code can go wrong."""

from __future__ import annotations

import itertools
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_repo.runtime.errors import BadInput
from pipeline.recipe import SourceRecipe
from pipeline.sources import open_source

PRELUDE = """\
import sys, time, torch
from torch import nn
from pipeline import ModuleExample

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x, scale=None):
        y = self.linear(x)
        return y if scale is None else y * scale

X = torch.ones(3, 4)
"""
_numbers = itertools.count()


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Writes a module with PRELUDE and the given code in the current folder; gives its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    written: list[str] = []

    def module(code: str) -> str:
        name = f"user_code_{next(_numbers)}"
        (tmp_path / f"{name}.py").write_text(PRELUDE + textwrap.dedent(code), encoding="utf-8")
        written.append(name)
        return name

    yield module
    for name in written:
        sys.modules.pop(name, None)


def load(reference: str, seconds: float = 60.0) -> Any:
    return open_source(reference, SourceRecipe(reference, load_seconds=seconds)).load()


def test_opening_finds_the_file_and_runs_nothing(write: Callable[[str], str], tmp_path: Path) -> None:
    name = write("raise SystemExit('opened files are not run')")
    source = open_source(f"{name}:build", SourceRecipe(f"{name}:build"))
    assert (source.name, source.kind, source.files) == ("build", "tensors", (tmp_path / f"{name}.py",))
    assert name not in sys.modules


def test_all_files_of_a_package_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for place in ("pack_of_models/__init__.py", "pack_of_models/vision/net.py", "pack_of_models/layers.py"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text("")
    source = open_source("pack_of_models.vision.net:build", SourceRecipe("x"))
    assert [path.name for path in source.files] == ["net.py", "__init__.py", "layers.py"]


def test_a_module_with_inputs_is_loaded(write: Callable[[str], str]) -> None:
    name = write("def build(): return Net(), (X,)")
    model = load(f"{name}:build")
    assert [(spec.name, spec.dtype, spec.shape) for spec in model.inputs] == [("x", "float32", (3, 4))]
    assert (model.axes, list(model.output_names)) == ((), ["output"])


def test_names_come_from_the_keywords_and_the_results_keys(write: Callable[[str], str]) -> None:
    name = write(
        """
        class Named(Net):
            def forward(self, *, x, scale):
                y = super().forward(x, scale)
                return {"plain": y, "pair": (y + 1, [y + 2])}

        def build():
            return ModuleExample(
                Named(), {"x": X, "scale": X[:, :1]}, {"x": {0: "batch"}, "scale": {-2: "batch"}}
            )
        """
    )
    model = load(f"{name}:build")
    assert [spec.shape for spec in model.inputs] == [("batch", 4), ("batch", 1)]
    assert list(model.output_names) == ["plain", "pair_0", "pair_1"]
    plain, _, last = model.run(model.resized({"batch": 5}))
    assert plain.shape == (5, 2)
    np.testing.assert_allclose(last, plain + 2)


CALLS = {
    "raises": (
        "def build(): return [][1]",
        r"build raised IndexError: list index out of range \(user_code_\d+\.py:15, in build: def build\(\)",
    ),
    "ends the process": ("def build(): sys.exit(3)", r"build raised SystemExit: 3 \(user_code_\d+\.py:15"),
    "raises when imported": (
        "1 / 0",
        r"importing user_code_\d+ raised ZeroDivisionError.*\.py:15, in <module>: 1 / 0",
    ),
    "returns a number": (
        "def build(): return 3",
        r"build returned an int; it must return \(torch\.nn\.Module, inputs\)",
    ),
    "returns nothing": ("def build(): pass", r"build returned None"),
    "no module": (
        "def build(): return ModuleExample(len, (X,))",
        "as the module; a torch.nn.Module is needed",
    ),
    "no inputs": ("def build(): return Net(), ()", "as inputs; a tuple or a mapping of tensors is needed"),
    "a list": ("def build(): return Net(), ([1.0],)", r"input 'x' is a list; tensors are supported"),
    "no elements": (
        "def build(): return Net(), (X[:0],)",
        r"'x' has the shape \[0, 4\]; an example without elements",
    ),
    "another name": (
        'def build(): return Net(), {"y": X}',
        r"do not fit Net\.forward\(x, scale=None\): missing a required argument: 'x'",
    ),
    "too many": (
        "def build(): return Net(), (X, X, X)",
        r"do not fit Net\.forward.*too many positional arguments",
    ),
    "another width": (
        "def build(): return Net(), (X[:, :3],)",
        r"called with x \[3, 3\], raised RuntimeError: mat1 and mat2.*\.py:11, in forward: y = self\.linear\(x\)",
    ),
    "complex": (
        "def build(): return Net(), (X.to(torch.complex64),)",
        "'x' .* has the type complex64; .* cast it",
    ),
    "bfloat16 result": (
        "class Half(Net):\n    def forward(self, x): return x.bfloat16()\ndef build(): return Half(), (X,)",
        r"output 'output' of .* has the type bfloat16",
    ),
    "result of text": (
        "class Words(Net):\n    def forward(self, x): return {'y': x, 'z': 'text'}\ndef build(): return Words(), (X,)",
        "result z is a str; tensors, and tuples, lists and mappings",
    ),
    "no result": (
        "class Nothing(Net):\n    def forward(self, x): return None\ndef build(): return Nothing(), (X,)",
        r"outputs are \[\]; at least one",
    ),
    "no such input": (
        'def build(): return ModuleExample(Net(), (X,), {"z": {0: "n"}})',
        "dynamic names 'z', no input; there are x",
    ),
    "no such axis": (
        'def build(): return ModuleExample(Net(), (X,), {"x": {2: "n"}})',
        r"dynamic axis 2 of 'x', whose shape is \[3, 4\]",
    ),
    "no name of a size": (
        'def build(): return ModuleExample(Net(), (X,), {"x": {0: 7}})',
        "the size of axis 0 of 'x' is called 7; give a name",
    ),
    "one name, two sizes": (
        'def build(): return ModuleExample(Net(), (X,), {"x": {0: "n", 1: "n"}})',
        "the size 'n' is 3 and 4 in the example",
    ),
    "limits of nothing": (
        'def build(): return ModuleExample(Net(), (X,), limits={"n": (1, 2)})',
        "limits name 'n', no dynamic size; there are none",
    ),
    "outside the limits": (
        'def build(): return ModuleExample(Net(), (X,), {"x": {0: "n"}}, limits={"n": (1, 2)})',
        "the size 'n' is 3 in the example, outside its limits 1 to 2",
    ),
    "names of outputs": (
        'def build(): return ModuleExample(Net(), (X,), output_names=("a", "b"))',
        r"output_names is \['a', 'b'\]; the module gives 1 outputs \(output\)",
    ),
}


@pytest.mark.parametrize(("code", "message"), CALLS.values(), ids=CALLS.keys())
def test_code_that_goes_wrong_is_told_in_one_sentence(
    write: Callable[[str], str], code: str, message: str
) -> None:
    name = write(code)
    with pytest.raises(BadInput, match=message):
        load(f"{name}:build")


HANGS = {
    "the function": "def build():\n    while True: time.sleep(0.01)",
    "the import": "while True: pass",
    "a function that swallows everything": (
        "def build():\n    try:\n        time.sleep(30)\n    except Exception:\n        time.sleep(30)"
    ),
    "the module": (
        "class Slow(Net):\n    def forward(self, x):\n        time.sleep(30)\n        return x\n"
        "def build(): return Slow(), (X,)"
    ),
}


@pytest.mark.parametrize("code", HANGS.values(), ids=HANGS.keys())
def test_code_that_hangs_is_ended_at_the_limit(write: Callable[[str], str], code: str) -> None:
    name = write(code)
    with pytest.raises(
        BadInput,
        match=rf"has not ended within 0\.2 seconds \({name}\.py:\d+, in .*raise source\.load_seconds",
    ):
        load(f"{name}:build", seconds=0.2)


def test_a_function_of_another_name_is_suggested(write: Callable[[str], str]) -> None:
    name = write("def resnet(): return Net(), (X,)")
    with pytest.raises(BadInput, match="has no function 'resnt'; did you mean 'resnet'"):
        load(f"{name}:resnt")


@pytest.mark.parametrize("reference", ["no_such_module_here:f", "json.no_such_part:f", "os.path.deeper:f"])
def test_a_module_that_does_not_exist_is_refused(reference: str) -> None:
    with pytest.raises(BadInput, match=r"no Python module .*run in the folder that holds it, or install it"):
        open_source(reference, SourceRecipe(reference))
