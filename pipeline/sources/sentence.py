"""What sentence-transformers lays beside an encoder: pooling, dense layers and normalization (modules.json).

https://www.sbert.net/docs/package_reference/sentence_transformer/modules.html
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from model_repo.runtime.errors import BadInput

from .base import DenseLayer, Pooling
from .checkpoint import SINGLE, read_header
from .files import read_json

MODULES = "modules.json"
PICKLE = "pytorch_model.bin"
ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "Sigmoid", "SiLU")
"""Classes of torch.nn that a dense layer may end in."""

_MODES: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
_ORDER = ("Transformer", "Pooling", "Dense", "Normalize")


@dataclass(frozen=True)
class SentenceModules:
    """What follows the encoder, in this order; `files` say so. Without modules.json: the mean, as
    sentence-transformers does."""

    pooling: Pooling = "mean"
    dense: tuple[DenseLayer, ...] = ()
    normalize: bool = False
    files: tuple[Path, ...] = ()


def sentence_modules(folder: Path, allow_pickle: bool) -> SentenceModules:
    """The modules in the folder. Raises BadInput for other modules, another order, and settings not supported."""
    modules_file = folder / MODULES
    if not modules_file.is_file():
        return SentenceModules()
    kinds = _module_list(modules_file)
    for kind, _ in kinds:
        if kind not in _ORDER:
            raise BadInput(f"{modules_file} has a module {kind!r}; supported are {', '.join(_ORDER)}")
    places = [_ORDER.index(kind) for kind, _ in kinds]
    if places != sorted(places) or any(places.count(place) > 1 for place in (0, 1, 3)):
        raise BadInput(
            f"{modules_file} has the modules {', '.join(kind for kind, _ in kinds)}; they must come as "
            f"{', '.join(_ORDER)}, Dense as often as you like"
        )
    pooling: Pooling = "mean"
    dense: list[DenseLayer] = []
    files: list[Path] = []
    for kind, path in kinds:
        if kind == "Pooling":
            files.append(folder / path / "config.json")
            pooling = _pooling(files[-1])
        elif kind == "Dense":
            dense.append(_dense(folder / path, allow_pickle))
            files += [folder / path / "config.json", dense[-1].weights]
    return SentenceModules(pooling, tuple(dense), "Normalize" in dict(kinds), tuple(files))


def _module_list(modules_file: Path) -> list[tuple[str, str]]:
    """(kind, sub folder) of each module."""
    try:
        modules = json.loads(modules_file.read_text(encoding="utf-8"))
        return [(str(module["type"]).rpartition(".")[2], str(module["path"])) for module in modules]
    except (UnicodeDecodeError, json.JSONDecodeError, TypeError, KeyError) as error:
        raise BadInput(
            f"{modules_file} is not a list of sentence-transformers modules ({error!r})"
        ) from error


def _pooling(config_file: Path) -> Pooling:
    """The one mode that is switched on; new files name it, older ones have a switch for each."""
    config = read_json(config_file)
    named = str(config.get("pooling_mode", ""))
    for mode in _MODES.values():
        if named == mode:
            return mode
    chosen = sorted(key for key, value in config.items() if key.startswith("pooling_mode_") and value is True)
    if len(chosen) == 1 and chosen[0] in _MODES:
        return _MODES[chosen[0]]
    shown = ", ".join(chosen) or named or "no pooling"
    raise BadInput(f"{config_file} asks for {shown}; supported is one of {', '.join(_MODES.values())}")


def _dense(folder: Path, allow_pickle: bool) -> DenseLayer:
    """A dense layer, its weights found and, where their header says so, of the right shape."""
    config_file = folder / "config.json"
    config = read_json(config_file)
    activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    if activation not in ACTIVATIONS:
        raise BadInput(
            f"{config_file}: the activation is {activation!r}; supported are {', '.join(ACTIVATIONS)}"
        )
    given = [config.get("in_features"), config.get("out_features")]
    sizes = [size for size in given if isinstance(size, int) and size > 0]
    if len(sizes) < 2:
        raise BadInput(
            f"{config_file}: in_features and out_features are {given}; they must be positive whole numbers"
        )
    weights = folder / SINGLE
    if weights.is_file():
        shape = read_header(weights).get("linear.weight", {}).get("shape")
        if shape != sizes[::-1]:
            raise BadInput(f"{weights}: linear.weight has the shape {shape}; the config says {sizes[::-1]}")
    elif not (folder / PICKLE).is_file():
        raise BadInput(f"{folder} holds no weights; it needs {SINGLE}")
    elif not allow_pickle:
        raise BadInput(
            f"{folder} holds only pickled weights ({PICKLE}), which can run code when they are read; convert them to "
            "safetensors, or give --allow-pickle (only tensors are then unpickled)"
        )
    else:
        weights = folder / PICKLE
    return DenseLayer(weights, sizes[0], sizes[1], bool(config.get("bias", True)), activation)
