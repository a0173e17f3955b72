"""`TensorRtEngine` over a package that records: what TensorRT is asked, and what users are told. Nothing runs here."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from model_repo.runtime import tensorrt_package
from model_repo.runtime.built_engine import BuiltEngine
from model_repo.runtime.device_engine import DeviceEngine, DeviceTensor
from model_repo.runtime.errors import BadInput, SlipwayError
from model_repo.runtime.host_device import HostDevice
from model_repo.runtime.tensorrt_engine import TensorRtEngine
from tests.runtime.fake_tensorrt import FakeTensorRt


class Hopper(HostDevice):
    """A device that says what chip it is."""

    compute_capability = (9, 0)
    capturing = False


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRt:
    monkeypatch.setattr(tensorrt_package, "_loaded", set())
    return installed(monkeypatch, FakeTensorRt())


def installed(monkeypatch: pytest.MonkeyPatch, package: FakeTensorRt) -> FakeTensorRt:
    monkeypatch.setitem(sys.modules, "tensorrt", package)  # type: ignore[arg-type]
    return package


@pytest.fixture
def built(tmp_path: Path) -> BuiltEngine:
    path = tmp_path / "engine.plan"
    path.write_bytes(b"a plan")
    return BuiltEngine(path, "tensorrt", "11.4.0", ("9.0",), ("decode", "prefill"))


def loaded(built: BuiltEngine) -> TensorRtEngine:
    return TensorRtEngine(Hopper(), built)  # type: ignore[arg-type]


def test_a_context_a_profile_over_one_workspace(trt: FakeTensorRt, built: BuiltEngine) -> None:
    engine: DeviceEngine = loaded(built)
    assert trt.plan == b"a plan"
    assert engine.workspace_bytes == 4096
    assert engine.profiles == ("decode", "prefill")
    assert dict(engine.tensors) == {
        "input_ids": DeviceTensor("input_ids", "input", "int32", (None,)),
        "key_cache_0": DeviceTensor("key_cache_0", "input", "float8e4m3fn", (None, 4, 2, 8)),
        "logits": DeviceTensor("logits", "output", "float32", (None, 64)),
        "key_cache_out_0": DeviceTensor("key_cache_out_0", "output", "float8e4m3fn", (None, 4, 2, 8)),
    }
    (_, first, second) = trt.calls[0], trt.calls[1:3], trt.calls[3:]
    workspace = first[0][2]
    assert first == [(0, "set_device_memory", workspace, 4096), (0, "set_optimization_profile_async", 0, 0)]
    assert second == [(1, "set_device_memory", workspace, 4096), (1, "set_optimization_profile_async", 1, 0)]


def test_addresses_reach_each_context_once_before_it_runs(trt: FakeTensorRt, built: BuiltEngine) -> None:
    engine = loaded(built)
    trt.calls.clear()
    engine.use_profile("prefill", 0)
    engine.set_address("logits", 0x700)
    engine.set_shape("input_ids", (16,))
    engine.enqueue(0x51)
    engine.enqueue(0x51)
    engine.use_profile("decode", 0)
    engine.set_shape("input_ids", (2,))
    engine.enqueue(0x51)
    assert trt.calls == [
        (1, "set_input_shape", "input_ids", (16,)),
        (1, "set_tensor_address", "logits", 0x700),
        (1, "execute_async_v3", 0x51),
        (1, "execute_async_v3", 0x51),
        (0, "set_input_shape", "input_ids", (2,)),
        (0, "set_tensor_address", "logits", 0x700),
        (0, "execute_async_v3", 0x51),
    ]


def test_a_context_that_was_captured_is_left_as_it_is(trt: FakeTensorRt, built: BuiltEngine) -> None:
    device = Hopper()
    engine = TensorRtEngine(device, built)  # type: ignore[arg-type]
    engine.set_address("logits", 0x700)
    engine.set_shape("key_cache_0", (9, 4, 2, 8))
    engine.set_shape("input_ids", (2,))
    engine.enqueue(0x51)
    device.capturing = True
    engine.enqueue(0x51)
    device.capturing = False
    trt.calls.clear()
    engine.set_shape("input_ids", (4,))
    engine.set_address("logits", 0x900)
    engine.enqueue(0x51)
    (made, *_), rest = trt.calls[0], trt.calls[2:]
    assert made == 2  # after the two of the profiles
    assert rest == [
        (2, "set_input_shape", "key_cache_0", (9, 4, 2, 8)),
        (2, "set_input_shape", "input_ids", (2,)),
        (2, "set_input_shape", "input_ids", (4,)),
        (2, "set_tensor_address", "logits", 0x900),
        (2, "execute_async_v3", 0x51),
    ]


def test_a_shape_outside_the_profile_is_named_with_its_range(trt: FakeTensorRt, built: BuiltEngine) -> None:
    engine = loaded(built)
    words = r"input 'input_ids' has the shape \[5\]; profile 'decode' of the engine takes \[1\] to \[4\]\.$"
    with pytest.raises(BadInput, match=words):
        engine.set_shape("input_ids", (5,))
    with pytest.raises(BadInput, match=r"shape \[9, 4, 2\]; .* takes \[1, 4, 2, 8\] to \[9, 4, 2, 8\]"):
        engine.set_shape("key_cache_0", (9, 4, 2))
    engine.use_profile("prefill", 0)
    engine.set_shape("input_ids", (5,))


def test_what_tensorrt_refuses_is_told_in_its_words(trt: FakeTensorRt, built: BuiltEngine) -> None:
    trt.says = ["a warning of the load"]
    engine = loaded(built)
    engine.set_address("logits", 1)
    trt.refused.add("set_tensor_address")
    with pytest.raises(SlipwayError, match="takes no 'logits' at 0x1: a warning of the load"):
        engine.enqueue(0)
    trt.refused = {"execute_async_v3"}
    engine = loaded(built)
    trt.refused.clear()
    trt.engine._refused.add("execute_async_v3")
    with pytest.raises(SlipwayError, match="the engine does not run: "):
        engine.enqueue(0)


def test_weights_are_not_streamed(monkeypatch: pytest.MonkeyPatch, built: BuiltEngine) -> None:
    trt = installed(monkeypatch, FakeTensorRt(streamable=12345))
    loaded(built)
    assert trt.engine is not None
    assert trt.engine.weight_streaming_budget_v2 == 12345


def test_an_engine_that_does_not_load_is_told_with_what_is_here(
    monkeypatch: pytest.MonkeyPatch, built: BuiltEngine
) -> None:
    trt = installed(monkeypatch, FakeTensorRt("11.5.0", loads=False))
    trt.says = ["The engine plan file is not compatible with this version"]
    common = (
        r"TensorRT 11\.5\.0 on a GPU of compute capability 9\.0 does not load .*engine\.plan, which was built by "
        r"TensorRT 11\.4\.0 for compute capability 9\.0: The engine plan file is not compatible with this version\. "
    )
    with pytest.raises(
        BadInput, match=common + r"Install tensorrt==11\.4\.0, or build the engine again with"
    ):
        loaded(built)
    trt.__version__ = "11.4.0"
    trt.says = ["generated on a different device"]
    other = replace(built, compute_capabilities=("8.9", "12.0"))
    with pytest.raises(
        BadInput, match=r"8\.9 and 12\.0: generated .* Build it for this GPU: --compute-capability 9\.0"
    ):
        loaded(other)
    trt.says = ["getPluginCreator could not find plugin: PagedAttention version: 1"]
    with pytest.raises(
        BadInput, match=r"library in C\+\+ beside it \(it has none\): .* Plugins in Python, which"
    ):
        loaded(built)
    trt.says = []
    with pytest.raises(BadInput, match=r"it does not say why\. Build it again"):
        loaded(built)


def test_plugins_are_loaded_before_the_engine_and_once(
    trt: FakeTensorRt, built: BuiltEngine, tmp_path: Path
) -> None:
    library = tmp_path / "libslipway_tensorrt.so"
    with_plugins = replace(built, plugins=(library,))
    with pytest.raises(
        BadInput, match=r"libslipway_tensorrt\.so, the library of plugins .* is missing; build"
    ):
        loaded(with_plugins)
    library.touch()
    loaded(with_plugins)
    assert trt.calls[:2] == [("load_library", str(library)), ("deserialize", 6)]
    trt.calls.clear()
    loaded(with_plugins)
    assert trt.calls[0] == ("deserialize", 6)


def test_plugins_that_do_not_load_are_named(
    monkeypatch: pytest.MonkeyPatch, built: BuiltEngine, tmp_path: Path
) -> None:
    monkeypatch.setattr(tensorrt_package, "_loaded", set())
    installed(monkeypatch, FakeTensorRt(plugins=False))
    library = tmp_path / "libslipway_tensorrt.so"
    library.touch()
    with pytest.raises(
        BadInput, match=r"TensorRT 11\.4\.0 does not load the plugins of .*libslipway_tensorrt\.so"
    ):
        loaded(replace(built, plugins=(library,)))


def test_a_missing_package_is_named_in_the_version_that_built_it(
    monkeypatch: pytest.MonkeyPatch, built: BuiltEngine
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=r"engine of TensorRT-RTX 1\.7, .*: pip install tensorrt-rtx==1\.7"):
        loaded(replace(built, target="tensorrt-rtx", version="1.7"))


def test_missing_files_and_profiles_are_told(trt: FakeTensorRt, built: BuiltEngine) -> None:
    with pytest.raises(BadInput, match="has 2 profiles, and its record names decode; build it again"):
        loaded(replace(built, profiles=("decode",)))
    built.path.unlink()
    with pytest.raises(BadInput, match=r"no engine .*engine\.plan; build it again"):
        loaded(built)


def test_memory_is_given_back(trt: FakeTensorRt, built: BuiltEngine) -> None:
    device = Hopper(limit=1 << 20)
    engine = TensorRtEngine(device, built)  # type: ignore[arg-type]
    assert device.memory.free == (1 << 20) - 4096
    engine.close()
    assert device.memory.free == 1 << 20


def test_a_record_names_what_the_engine_was_built_for(tmp_path: Path) -> None:
    record = {
        "target": "tensorrt",
        "version": "11.4",
        "compute_capabilities": [],
        "gpu": {"name": "a GPU", "capability": "9.0"},
        "profiles": {"decode": {}, "prefill": {}, "mixed": {}},
    }
    built = BuiltEngine.of_record(tmp_path / "engine.plan", record, [tmp_path / "lib.so"])
    assert built == BuiltEngine(
        tmp_path / "engine.plan",
        "tensorrt",
        "11.4",
        ("9.0",),
        ("decode", "prefill", "mixed"),
        (tmp_path / "lib.so",),
    )
    assert BuiltEngine.of_record(tmp_path, {**record, "gpu": None}).compute_capabilities == ()
    with pytest.raises(BadInput, match="lacks 'version'; build the engine again"):
        BuiltEngine.of_record(tmp_path, {k: v for k, v in record.items() if k != "version"})
