"""Timings kept between builds: by GPU, version and kernels; added to, replaced whole, left alone where they misfit.

TensorRT-RTX has the classes, and does nothing with them; what fits is decided by a stand-in for the configuration.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from model_repo.runtime.errors import BadInput
from pipeline.targets.tensorrt.bindings import load
from pipeline.targets.tensorrt.gpu_here import GpuHere
from pipeline.targets.tensorrt.timings import keep_timings, timing_file, use_timings

GPU = GpuHere("NVIDIA H200", "9.0")


class Cache:
    """Entries by key, and the device that they are of."""

    def __init__(self, content: bytes, device: str) -> None:
        said = json.loads(content) if content else {"device": device, "entries": {}}
        self.device: str = said["device"]
        self.entries: dict[str, int] = said["entries"]

    def serialize(self) -> bytes:
        return json.dumps({"device": self.device, "entries": self.entries}).encode()

    def queryKeys(self) -> list[str]:
        return list(self.entries)

    def query(self, key: str) -> Any:
        return SimpleNamespace(tacticHash=self.entries[key])

    def combine(self, other: Cache, ignore_mismatch: bool) -> bool:
        self.entries = {**other.entries, **self.entries}
        return True


class Config:
    """As IBuilderConfig is documented to treat timing caches."""

    def __init__(self, device: str) -> None:
        self.device, self.cache, self.flags = device, Cache(b"", device), set[str]()

    def set_flag(self, flag: str) -> None:
        self.flags.add(flag)

    def create_timing_cache(self, content: bytes) -> Cache:
        return Cache(content, self.device)

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
        fits = cache.device == self.device or ignore_mismatch
        if fits:
            self.cache = cache
        return fits

    def get_timing_cache(self) -> Cache:
        return self.cache


TRT = SimpleNamespace(
    BuilderFlag=SimpleNamespace(EDITABLE_TIMING_CACHE="edit", ERROR_ON_TIMING_CACHE_MISS="miss"),
    __version__="11.4",
)


def build(config: Config, kept: Path, beside: Path, timed: dict[str, int], replay: Path | None = None) -> str:
    note = use_timings(TRT, config, kept, replay)
    config.cache.entries |= timed
    return f"{note}|{keep_timings(config, None if replay else kept, beside)}"


def test_a_file_belongs_to_a_gpu_a_version_and_kernels(tmp_path: Path) -> None:
    kernels, others = tmp_path / "a.so", tmp_path / "b.so"
    kernels.write_bytes(b"one")
    others.write_bytes(b"two")
    folder = str(tmp_path / "cache")
    places = [
        timing_file(folder, GPU, "11.4", kernels),
        timing_file(folder, GpuHere("NVIDIA L4", "8.9"), "11.4", kernels),
        timing_file(folder, GPU, "11.5", kernels),
        timing_file(folder, GPU, "11.4", others),
        timing_file(folder, GPU, "11.4", None),
    ]
    assert len({*places}) == 5
    assert places[0].name.startswith("nvidia-h200-9.0-tensorrt-11.4-")
    assert {place.parent for place in places} == {Path(folder)}
    with pytest.raises(BadInput, match="which is no folder"):
        timing_file(str(kernels), GPU, "11.4", None)


def test_without_a_folder_it_lies_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert timing_file(None, None, "11.4", None).parent == tmp_path / "slipway" / "timings"


def test_builds_add_to_what_is_kept(tmp_path: Path) -> None:
    kept, beside = tmp_path / "kept.timing", tmp_path / "engine.timing"
    first = build(Config("h200"), kept, beside, {"a": 1})
    config = Config("h200")
    use_timings(TRT, config, kept, None)
    build(Config("h200"), kept, beside, {"b": 2})  # another build, meanwhile
    config.cache.entries |= {"c": 3}
    keep_timings(config, kept, beside)
    assert json.loads(kept.read_bytes())["entries"] == {"a": 1, "b": 2, "c": 3}
    assert json.loads(beside.read_bytes())["entries"] == {"a": 1, "c": 3}
    assert not list(tmp_path.glob("*.part"))
    again = build(Config("h200"), tmp_path / "new.timing", beside, {"a": 1})
    other = build(Config("h200"), tmp_path / "newer.timing", beside, {"a": 2})
    assert first == again != other


def test_those_of_another_device_are_left_alone_with_a_note(tmp_path: Path) -> None:
    kept, beside = tmp_path / "kept.timing", tmp_path / "engine.timing"
    build(Config("l4"), kept, beside, {"a": 1})
    config = Config("h200")
    assert "do not fit this GPU, driver or TensorRT, and are begun anew" in use_timings(
        TRT, config, kept, None
    )
    assert config.cache.entries == {}


def test_a_replay_times_nothing_and_adds_nothing(tmp_path: Path) -> None:
    kept, beside, replay = (tmp_path / f"{name}.timing" for name in ("kept", "engine", "replay"))
    first = build(Config("h200"), replay, beside, {"a": 1})
    config = Config("h200")
    assert build(config, kept, beside, {}, replay) == first
    assert config.flags == {"edit", "miss"}
    assert not kept.exists()
    with pytest.raises(BadInput, match=r"replay.timing holds timings of another GPU.*\(11.4 is here\)"):
        use_timings(TRT, Config("l4"), kept, replay)
    empty = tmp_path / "empty.timing"
    empty.write_bytes(Cache(b"", "h200").serialize())
    with pytest.raises(BadInput, match=r"empty.timing holds"):
        use_timings(TRT, Config("h200"), kept, empty)


@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX")
def test_the_real_classes_take_it(tmp_path: Path) -> None:
    """Also after a file that is no cache, of which they make an empty one."""
    trt = load("tensorrt-rtx")
    kept, beside = tmp_path / "kept.timing", tmp_path / "engine.timing"
    for content in (None, b"rubbish" * 20):
        if content is not None:
            kept.write_bytes(content)
        builder = trt.Builder(trt.Logger(trt.Logger.INTERNAL_ERROR))
        config = builder.create_builder_config()
        assert use_timings(trt, config, kept, None) == ""
        assert config.get_flag(trt.BuilderFlag.EDITABLE_TIMING_CACHE)
        assert keep_timings(config, kept, beside) == ""
        assert kept.read_bytes() == beside.read_bytes() != b""
