"""Which format a quantized checkpoint has, and its weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from calibration.schemes import Quantized
from model_repo.runtime.errors import BadInput

from . import awq, compressed_tensors, gptq, modelopt, qat
from .tensors import Array, Tensors

FORMATS: Mapping[str, ModuleType] = {
    "gptq": gptq,
    "awq": awq,
    "compressed-tensors": compressed_tensors,
    "modelopt": modelopt,
    "qat": qat,
}
"""quant_method of config.json -> its reader; qat is told by its tensors."""

_MODELOPT_FILE = "hf_quant_config.json"
_OWN = (
    "qweight", "qzeros", "scales", "g_idx", "weight_packed", "weight_shape", "weight_scale", "weight_scale_2",
    "weight_zero_point", "input_scale", "input_zero_point", "k_scale", "v_scale", "k_proj.k_scale", "v_proj.v_scale",
)  # fmt: skip
"""Names of tensors that belong to a quantized layer and are no parameters of the float model."""


class QuantizedCheckpoint(Mapping[str, Quantized]):
    """The quantized weights by the name of the float parameter, read when asked for."""

    def __init__(self, method: str, tensors: Tensors, config: Mapping[str, Any]) -> None:
        """Raises BadInput when the format, or its kind of weights, is not read, or no layer is quantized."""
        if method not in FORMATS:
            raise BadInput(
                f"checkpoints quantized by {method!r} are not read; those of {', '.join(FORMATS)} are. Give the float "
                "checkpoint"
            )
        self.method = method
        self.tensors = tensors
        self._config = config
        reader = FORMATS[method]
        self._read: Callable[[Tensors, str, Mapping[str, Any]], Quantized] = reader.read
        self._modules: list[str] = reader.modules(tensors, config)
        if not self._modules:
            raise BadInput(
                f"config.json says {method}, but no layer of the checkpoint is quantized; get it again"
            )

    def __getitem__(self, name: str) -> Quantized:
        if name not in self:
            raise KeyError(name)
        return self._read(self.tensors, name.removesuffix(".weight"), self._config)

    def __contains__(self, name: object) -> bool:
        return (
            isinstance(name, str)
            and name.endswith(".weight")
            and name.removesuffix(".weight") in self._modules
        )

    def __iter__(self) -> Iterator[str]:
        return (f"{module}.weight" for module in self._modules)

    def __len__(self) -> int:
        return len(self._modules)

    def input_scale(self, name: str) -> float | None:
        """The fixed scale of what the weight is multiplied with; None where it is dynamic or not quantized."""
        key = f"{name.removesuffix('.weight')}.input_scale"
        return float(self.tensors[key].reshape(())) if key in self.tensors else None

    def plain(self) -> Iterator[tuple[str, Array]]:
        """The tensors that are parameters of the float model as they are."""
        for name in self.tensors:
            module, _, last = name.rpartition(".")
            known = module in self._modules and (last in _OWN or last == "weight")
            if (
                not known
                and "fake_quant" not in name
                and "activation_post_process" not in name
                and last not in _OWN
            ):
                yield name, self.tensors[name]


def quantization_config(folder: Path) -> tuple[str, Mapping[str, Any]] | None:
    """The method and its settings that a checkpoint folder names; None for a float checkpoint.

    Raises BadInput when a config is not readable.
    """
    for file, key in (("config.json", "quantization_config"), (_MODELOPT_FILE, "quantization")):
        path = folder / file
        if not path.is_file():
            continue
        try:
            found = json.loads(path.read_text(encoding="utf-8")).get(key)
        except (UnicodeDecodeError, json.JSONDecodeError, AttributeError) as error:
            raise BadInput(f"{path} is not a JSON object ({error}); get the file again") from error
        if isinstance(found, dict):
            named = "modelopt" if file == _MODELOPT_FILE else str(found.get("quant_method", "unnamed"))
            return named, found
    return None


def open_quantized(folder: Path, files: Sequence[Path]) -> QuantizedCheckpoint | None:
    """The quantized weights of a checkpoint folder, whose safetensors are `files`; None for a float checkpoint.

    Raises BadInput as `QuantizedCheckpoint` does.
    """
    named = quantization_config(folder)
    tensors = Tensors(files)
    if named is not None:
        return QuantizedCheckpoint(named[0], tensors, named[1])
    return QuantizedCheckpoint("qat", tensors, {}) if tensors.modules_with(qat.MARK) else None
