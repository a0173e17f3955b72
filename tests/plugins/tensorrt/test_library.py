"""The plugins in C++, called as TensorRT does. Compiled with a do-nothing declaration of TensorRT's interfaces written
for these tests (`include/`), since no package holds the real headers; the kernels are the emulated ones."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch

from model_repo.runtime.errors import BadInput, SlipwayError
from plugins.cuda.case import Outcome, faults
from plugins.cuda.library import Library, aligned_workspace
from plugins.tensorrt import build as plugin_build
from plugins.tensorrt import names
from plugins.tensorrt.python_plugin import FORMS
from tests.plugins.tensorrt.calls import CPU, Call, calls
from tests.plugins.tensorrt.library import INCLUDE, RUNTIME, Plugin, PluginLibrary, Refused

LEAST = ("query", "key_cache", "value_cache", "cumulative_sequence_length", "past_seqlens", "block_table")


@pytest.fixture(scope="session")
def plugins(plugin_library: Path, tmp_path_factory: pytest.TempPathFactory) -> PluginLibrary:
    return PluginLibrary(plugin_library, tmp_path_factory.mktemp("driver"))


def typed(call: Call) -> dict[str, int | float]:
    """The call's attributes, whole numbers as such."""
    kinds = call.form.attribute_names(call.form.description)
    return {key: int(value) if kinds[key] else float(value) for key, value in call.form.attributes.items()}


def loaded(plugins: PluginLibrary, call: Call) -> Plugin:
    """The call's plugin as an engine gives it to a context."""
    return plugins.create(call.form.name, call.form.inputs, typed(call)).reloaded()


@pytest.mark.parametrize("name", FORMS)
def test_each_case_of_the_kernel_comes_out_right(plugins: PluginLibrary, kernels: Library, name: str) -> None:
    for call in calls(kernels, name):
        plugin, order, places = loaded(plugins, call), call.order, len(call.form.inputs)
        words = call.case.name
        assert all(plugin.takes(place, order, places) for place in range(len(order))), words
        assert plugin.results(order[:places]) == [(t.dtype, list(t.shape)) for t in order[places:]], words
        plugin.configure(order, places)
        assert plugin.workspace_bytes(order, places) == call.workspace().numel(), words
        plugin.enqueue(order, places, call.workspace())
        expected = {key: value for key, value in call.case.expected.items() if key in call.tensors}
        checked = dataclasses.replace(call.case, tensors={}, expected=expected)
        got = {key: call.result(key) for key in expected}
        assert faults(checked, Outcome(0, "", got)) == [], words


@pytest.mark.parametrize("name", FORMS)
def test_both_languages_say_the_same(plugins: PluginLibrary, kernels: Library, name: str) -> None:
    form = FORMS[name]
    known = form.attribute_names(kernels.describe(form.operator))
    assert sorted(plugins.fields(name)) == sorted([names.INPUTS, names.STATE, *known])
    dtypes = (
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int8,
        torch.uint8,
        torch.float8_e4m3fn,
        torch.int32,
    )
    call = next(calls(kernels, name))
    plugin, order, places = loaded(plugins, call), call.order, len(call.form.inputs)
    for place, tensor in enumerate(order):
        for dtype in dtypes:
            tried = [*order[:place], tensor.to(dtype), *order[place + 1 :]]
            said = call.form.takes(place, [t.dtype for t in tried])
            assert plugin.takes(place, tried, places) == said, (place, dtype)
        assert not plugin.takes(place, order, places, linear=False)


def test_the_library_links_nothing_of_tensorrt(plugin_library: Path) -> None:
    def symbols(kind: str) -> list[str]:
        said = subprocess.run(["nm", "-D", kind, plugin_library], capture_output=True, text=True, check=True)
        return [line.split()[-1] for line in said.stdout.splitlines()]

    assert symbols("--defined-only") == ["getCreators", "setLoggerFinder"]
    undefined = symbols("--undefined-only")
    assert [
        name for name in undefined if re.search("nvinfer|Nv|createInfer|getPluginRegistry|cuda", name)
    ] == []
    assert sorted(name for name in undefined if name.startswith("slipway")) == [
        "slipway_describe",
        "slipway_run",
        "slipway_workspace_bytes",
    ]


def test_a_plugin_of_the_build_phase_leaves_buffers_alone(plugins: PluginLibrary, kernels: Library) -> None:
    call = next(calls(kernels, names.PAGED_ATTENTION))
    plugin = plugins.create(call.form.name, call.form.inputs, typed(call))
    before = {key: value.clone() for key, value in call.tensors.items()}
    call.tensors["block_table"].fill_(1 << 30)  # what a builder may have left there
    before["block_table"].fill_(1 << 30)
    plugin.enqueue(call.order, len(call.form.inputs), call.workspace())
    for key, value in call.tensors.items():
        assert torch.equal(value.view(torch.uint8), before[key].view(torch.uint8)), key


def test_pools_apart_are_refused_in_words(plugins: PluginLibrary, kernels: Library) -> None:
    call = next(calls(kernels, names.PAGED_ATTENTION))
    plugin, order = loaded(plugins, call), call.order
    order[len(call.form.inputs) + 1] = call.tensors["key_cache"].clone()
    with pytest.raises(
        Refused, match="plugin PagedAttention: key_cache is written in place: give the engine's"
    ):
        plugin.enqueue(order, len(call.form.inputs), call.workspace())


def test_what_the_kernel_refuses_is_an_error_in_its_words(plugins: PluginLibrary, kernels: Library) -> None:
    call = next(calls(kernels, names.PAGED_ATTENTION))
    plugin, order, places = loaded(plugins, call), call.order, len(call.form.inputs)
    order[call.form.inputs.index("key_cache")] = torch.zeros(29, 24, 2, 64, dtype=torch.float16)
    order[places + 1] = order[call.form.inputs.index("key_cache")]
    with pytest.raises(Refused, match=r"plugin PagedAttention: paged_attention: .*block_size"):
        plugin.configure(order, places)
    with pytest.raises(Refused, match=r"plugin PagedAttention: paged_attention: .*block_size"):
        plugin.enqueue(order, places, aligned_workspace(1 << 20, CPU))
    assert plugin.workspace_bytes(order, places) == 0


@pytest.mark.parametrize(
    ("inputs", "attributes", "words"),
    [
        ((*LEAST, "distance_bias"), {}, "it has no input distance_bias"),
        (LEAST[1:], {}, "it needs the input query"),
        ((*LEAST, "query"), {}, "input query is named twice"),
        (LEAST, {"heads": 3}, "it has no attribute heads"),
        (
            LEAST,
            {"state_version": 2},
            "its state has version 2; this library reads 1: build the engine again",
        ),
    ],
)
def test_no_plugin_is_made_of_what_the_kernel_has_not(
    plugins: PluginLibrary, inputs: tuple[str, ...], attributes: dict[str, int], words: str
) -> None:
    with pytest.raises(Refused, match=words):
        plugins.create(names.PAGED_ATTENTION, inputs, attributes, RUNTIME)


def test_flash_attention_needs_its_heads(plugins: PluginLibrary) -> None:
    with pytest.raises(Refused, match="it needs the attribute kv_num_heads"):
        plugins.create(names.FLASH_ATTENTION, ("query", "cu_seqlens_q", "cu_seqlens_k"), {"num_heads": 2})


def test_headers_and_kernels_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match=r"holds no NvInferRuntime.h; give the folder that does: Debian's"):
        plugin_build.build(tmp_path, tmp_path / "kernels.so", tmp_path / "build")
    monkeypatch.setattr(plugin_build, "current_library", lambda: None)
    with pytest.raises(
        BadInput, match="the CUDA kernels, which the plugins call, are not built here: run `make"
    ):
        plugin_build.build(INCLUDE, None, tmp_path / "build")
    assert not (tmp_path / "build").exists()


def test_a_second_build_compiles_nothing(
    plugin_library: Path, kernels_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile_nothing(*_: object) -> None:
        raise SlipwayError("compiled again")

    monkeypatch.setattr(plugin_build, "_compile", compile_nothing)
    assert plugin_build.build(INCLUDE, kernels_path) == plugin_library


def test_libraries_that_nobody_asked_for_are_removed(kernels_path: Path, tmp_path: Path) -> None:
    made = plugin_build.build(INCLUDE, kernels_path, tmp_path)
    old, fresh = tmp_path / "old" / made.name, tmp_path / "fresh" / made.name
    for library in (old, fresh):
        library.parent.mkdir()
        library.touch()
    os.utime(old.parent, (0, 0))
    os.utime(made.parent, (0, 0))
    assert plugin_build.build(INCLUDE, kernels_path, tmp_path) == made  # asked for again
    assert made.is_file()
    assert fresh.is_file()
    assert not old.parent.exists()
