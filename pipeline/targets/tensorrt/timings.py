"""Timings of kernels that TensorRT keeps between builds: they save time, and the same ones give the same engine.

A file belongs to one GPU, one version of TensorRT and one library of kernels. Builds that differ between runs differ in
which kernels were timed fastest; `engine.timing`, which lies beside each engine, holds what was chosen, and a build
that replays it times nothing (BuilderFlag.ERROR_ON_TIMING_CACHE_MISS).
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

from model_repo.runtime.errors import BadInput
from plugins.toolchain import cache_folder, locked

from .gpu_here import GpuHere

SUFFIX = ".timing"
_HASH_DIGITS = 12


def timing_file(folder: str | None, gpu: GpuHere | None, version: str, kernels: Path | None) -> Path:
    """Where timings are kept. folder: None for the user's cache. kernels: the plugins' library, whose bytes count.

    Raises BadInput when the folder cannot be made or written.
    """
    if folder is None:
        place = cache_folder(_user_cache(), "timings of kernels")
    else:
        place = Path(folder)
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(
                f"target.builder.timing_cache is {folder!r}, which is no folder: {error}"
            ) from error
    chip = f"{gpu.name} {gpu.capability}" if gpu is not None else "no GPU"
    digest = hashlib.sha256(kernels.read_bytes() if kernels is not None else b"").hexdigest()
    words = re.sub(r"[^a-z0-9.]+", "-", f"{chip} tensorrt {version}".lower())
    return place / f"{words}-{digest[:_HASH_DIGITS]}{SUFFIX}"


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slipway" / "timings"


def use_timings(trt: Any, config: Any, kept: Path, replay: Path | None) -> str:
    """Gives the builder the timings of `kept`, or those of `replay` and no others.

    Gives a note when the kept ones do not fit, which are then begun anew. Raises BadInput when those to replay do not.
    """
    config.set_flag(trt.BuilderFlag.EDITABLE_TIMING_CACHE)
    if replay is not None:
        if not _attach(config, replay.read_bytes()) or not config.get_timing_cache().queryKeys():
            raise BadInput(
                f"{replay} holds timings of another GPU, driver or version of TensorRT ({trt.__version__} is here); "
                "replay it where it was made, or build without target.builder.replay"
            )
        config.set_flag(trt.BuilderFlag.ERROR_ON_TIMING_CACHE_MISS)
        return ""
    if kept.is_file() and _attach(config, kept.read_bytes()):
        return ""
    _attach(config, b"")
    if not kept.is_file():
        return ""
    return f"the timings in {kept} do not fit this GPU, driver or TensorRT, and are begun anew"


def _attach(config: Any, content: bytes) -> bool:
    cache = config.create_timing_cache(content)
    return cache is not None and bool(config.set_timing_cache(cache, False))


def keep_timings(config: Any, kept: Path | None, beside: Path) -> str:
    """Writes what the build used to `beside`, and adds it to `kept`, where other builds may have added theirs.

    Gives a hash of the kernels chosen: equal for builds that chose the same ones. Files appear whole or not at all.
    """
    cache = config.get_timing_cache()
    _write(beside, bytes(cache.serialize()))
    chosen = sorted(f"{key}={cache.query(key).tacticHash}" for key in cache.queryKeys())
    if kept is not None:
        with locked(kept.with_suffix(".lock")):
            if kept.is_file():
                theirs = config.create_timing_cache(kept.read_bytes())
                if theirs is not None:
                    cache.combine(theirs, False)
            _write(kept, bytes(cache.serialize()))
    return hashlib.sha256("\n".join(chosen).encode()).hexdigest()[:_HASH_DIGITS] if chosen else ""


def _write(path: Path, content: bytes) -> None:
    staged = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        staged.write_bytes(content)
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)
