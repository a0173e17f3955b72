"""The C interface that all operators share, on an operator of the tests: checks, descriptions, codes."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch

from model_repo.runtime.errors import BadInput
from plugins.cuda.case import Case
from plugins.cuda.emulated import BUILD, Build, check, run
from plugins.cuda.library import INTERNAL, UNSUPPORTED, KernelError, Library, aligned_workspace
from plugins.cuda.units import CORE, units_of
from tests.plugins.cuda.conftest import toy_sources

X = torch.arange(51, dtype=torch.float16).reshape(3, 17)
DOUBLED = X * 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources that all operators share, with the toy as the only operator."""
    return toy_sources(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def library(folder: Path) -> Library:
    return Library(Build(operators=("toy",), folder=folder).library())


def refused(words: str, **tensors: torch.Tensor) -> Case:
    return Case(words, "toy", {"input": X, **tensors}, {"output": DOUBLED}, error=words)


REFUSED = [
    refused("input is float32; allowed: float16, bfloat16", input=X.float()),
    refused("output is bfloat16, but another tensor of type T is float16", output=X.bfloat16()),
    refused("input has rank 1; it must have rank 2: [rows, hidden]", input=X[0]),
    refused("output is [3, 16]; axis 1 must be hidden, and hidden is 17", output=X[:, :16].contiguous()),
    refused("offsets is [3]; axis 0 must be rows+1, and rows is 3", offsets=torch.zeros(3, dtype=torch.int32)),
    refused("offsets is float32; allowed: int32", offsets=torch.zeros(4)),
    refused("pairs is [2, 34]; axis 0 must be rows, and rows is 3", pairs=torch.zeros(2, 34)),
    refused("pairs is [1, 33]; axis 1 must be 2*hidden", pairs=torch.zeros(1, 33)),
    refused(
        "input has stride 3 on axis 1; it must be 1 (contiguous)", input=X.t().contiguous().t()
    ),
    refused("pairs has stride 3 on axis 1; it must be 1", pairs=torch.zeros(34, 3).t()),
    refused("hidden is 13; any other is allowed", input=X[:, :13].contiguous(), output=X[:, :13].contiguous()),
    Case("attribute", "toy", {"input": X}, {"output": X}, {"factor": 11}, error="factor is 11; allowed are 0 to 10"),
    Case("nan", "toy", {"input": X}, {"output": X}, {"factor": float("nan")}, error="factor is nan"),
    Case("whole", "toy", {"input": X}, {"output": X}, {"overrun": 0.5}, error="it must be a whole number"),
    Case("absent", "toy", {}, {"output": X}, error="input is absent; toy needs it"),
]  # fmt: skip


@pytest.mark.parametrize("flavour", ["plain", "asan", "tsan"])
def test_calls_are_carried_out_and_compared(folder: Path, flavour: str) -> None:
    build = Build(flavour, ("toy",), folder)
    good = [
        Case("doubled", "toy", {"input": X}, {"output": DOUBLED}),
        Case("tripled", "toy", {"input": X}, {"output": X * 3}, {"factor": 3}),
        Case("bfloat16", "toy", {"input": X.bfloat16()}, {"output": DOUBLED.bfloat16()}),
        Case("no rows", "toy", {"input": X[:0]}, {"output": X[:0]}),
        Case("broadcast pairs", "toy", {"input": X, "pairs": torch.zeros(1, 34)}, {"output": DOUBLED}),
        Case("strided pairs", "toy", {"input": X, "pairs": torch.zeros(3, 40)[:, :34]}, {"output": DOUBLED}),
    ]
    assert check([*good, *REFUSED], build) == {}
    wrong = check(
        [
            Case("bits", "toy", {"input": X}, {"output": DOUBLED + 1}),
            Case("norm", "toy", {"input": X}, {"output": DOUBLED * 1.1}, tolerance=1e-2),
            Case("too good", "toy", {"input": X}, {"output": DOUBLED}, error="something"),
        ],
        build,
    )
    assert list(wrong) == ["bits", "norm", "too good"]


def test_a_null_pointer_is_refused(folder: Path) -> None:
    null = X.clone()
    null.null_address = True  # type: ignore[attr-defined]  # the runner's way to ask for it
    case = Case(
        "null", "toy", {"input": null}, {"output": X}, error="input is a null pointer, but has 51 elements"
    )
    assert check([case], Build(operators=("toy",), folder=folder)) == {}


@pytest.mark.parametrize("flavour", ["plain", "asan"])
def test_a_write_past_the_end_is_found(folder: Path, flavour: str) -> None:
    case = Case("overrun", "toy", {"input": X}, {"output": DOUBLED}, {"overrun": 1})
    (outcome,) = run([case], Build(flavour, ("toy",), folder))
    assert outcome.code != 0
    assert ("guard bytes" if flavour == "plain" else "heap-buffer-overflow") in outcome.message


def test_an_early_end_is_laid_to_the_case_it_came_in(folder: Path) -> None:
    cases = [
        Case(name, "toy", {"input": X}, {"output": DOUBLED}, {"overrun": overrun})
        for name, overrun in (("before", 0), ("bad", 1), ("after", 0))
    ]
    wrong = check(cases, Build("asan", ("toy",), folder))
    assert list(wrong) == ["bad", "after"]
    assert "heap-buffer-overflow" in wrong["bad"][0]


def test_codes_tell_what_kind_of_refusal_it_was(library: Library) -> None:
    for hidden, code in ((14, UNSUPPORTED), (15, INTERNAL)):
        x = torch.zeros(2, hidden, dtype=torch.float16)
        with pytest.raises(KernelError) as caught:
            library.run("toy", {"input": x, "output": x.clone()})
        assert caught.value.code == code
    with pytest.raises(BadInput, match="toy: hidden is 13"):
        library.run("toy", {"input": X[:, :13].contiguous(), "output": X[:, :13].contiguous()})


def test_the_library_says_what_an_operator_takes(library: Library) -> None:
    toy = library.describe("toy")
    assert [(t.name, t.role, t.optional, t.strided, t.type, t.shape) for t in toy.tensors] == [
        ("input", "input", False, False, "T", ("rows", "hidden")),
        ("output", "output", False, False, "T", ("rows", "hidden")),
        ("offsets", "input", True, False, "int32", ("rows+1",)),
        ("pairs", "input", True, True, "float32", ("1|rows", "2*hidden")),
    ]
    assert toy.types == {"T": ("float16", "bfloat16")}
    factor = toy.attributes[0]
    assert (factor.name, factor.default, factor.min, factor.max, factor.integer) == (
        "factor",
        2,
        0,
        10,
        False,
    )
    assert toy.limits == ("hidden: not 13",)
    assert library.info["operators"] == ["toy"]
    with pytest.raises(BadInput, match="no operator 'tool'"):
        library.describe("tool")


def test_wrong_names_are_refused_with_the_right_ones(library: Library) -> None:
    with pytest.raises(BadInput, match="toy has no tensor 'x'; it has input, output"):
        library.run("toy", {"x": X})
    with pytest.raises(BadInput, match="toy has no attribute 'f'; it has factor"):
        library.run("toy", {"input": X, "output": X.clone()}, {"f": 1})


def test_the_workspace_must_be_large_enough_and_aligned(library: Library) -> None:
    tensors = {"input": X, "output": torch.empty_like(X)}
    attributes = {"workspace": 1000}
    assert library.workspace_bytes("toy", tensors, attributes) == 1000
    library.run("toy", tensors, attributes)
    assert torch.equal(tensors["output"], DOUBLED)
    for count, offset, words in ((999, 0, "999 bytes; 1000 are needed"), (1001, 1, "aligned to 256 bytes")):
        workspace = aligned_workspace(count, torch.device("cpu"))[offset:]
        with pytest.raises(BadInput, match=words):
            library.run("toy", tensors, attributes, workspace=workspace)


def test_counts_and_null_tables_are_refused(library: Library) -> None:
    raw = ctypes.CDLL(str(library.path))
    message = ctypes.create_string_buffer(1024)
    for n_tensors, n_attributes, words in (
        (3, 3, b"3 tensors given; toy takes 4"),
        (4, 2, b"2 attributes given; toy takes 3"),
        (4, 3, b"tensors is NULL"),
    ):
        code = raw.slipway_run(
            b"toy", None, n_tensors, None, n_attributes, None, ctypes.c_int64(0), None, message
        )
        assert (code, words in message.value) == (1, True)
    assert raw.slipway_run(None, None, 0, None, 0, None, ctypes.c_int64(0), None, None) == 1


def test_an_operator_needs_its_units_and_the_core(folder: Path) -> None:
    assert {unit.name for unit in units_of(["toy"], folder)} == {*CORE, "toy.cu"}
    with pytest.raises(KeyError, match="no unit describes the operator 'tool'"):
        units_of(["tool"], folder)


def test_builds_are_kept_by_content(folder: Path) -> None:
    first = Build(operators=("toy",), folder=folder).library()
    written = first.stat().st_mtime_ns
    assert Build(operators=("toy",), folder=folder).library() == first
    assert first.stat().st_mtime_ns == written
    assert first.is_relative_to(BUILD)
