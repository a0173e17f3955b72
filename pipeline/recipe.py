"""The recipe: everything that decides what is built, as nested frozen dataclasses, YAML on disk.

Each section belongs to one part of the way and is hashed by itself, so that changing how a model is served
does not export it again. A recipe that exists is valid: construction checks every field and raises BadInput
with the field, the value and what is allowed. Nothing but the recipe changes what is built.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, replace
from pathlib import Path
from typing import Any

from model_repo.runtime.errors import BadInput

from .builder_recipe import BuilderRecipe as BuilderRecipe
from .demands import AcceptRecipe as AcceptRecipe
from .demands import ParityRecipe as ParityRecipe
from .demands import Tolerance as Tolerance
from .section import Section, setting

MAX_LENGTH_CAP = 4096
"""Tokens: without `export.max_length`, the most that is taken of a model's own limit; caches grow with it."""

PRECISIONS = (
    "fp32",
    "fp16",
    "bf16",
    "int8",
    "int8-weights",
    "fp8",
    "int4",
    "int4-asymmetric",
    "w4a8",
    "mixed",
)
KV_DTYPES = ("float32", "float16", "bfloat16", "int8", "fp8")
ALGORITHMS = ("rtn", "hqq", "gptq", "awq", "awq-gptq", "smoothquant", "adaround", "checkpoint")
BLOCKS = (32, 64, 128)
TARGETS = ("onnxruntime", "onnxruntime-cuda", "tensorrt-rtx", "tensorrt")
_OWN_BLOCKS: Mapping[str, int] = {"onnxruntime-cuda": 256}
"""Tokens of a cache block where a target wants others than most: its FlashAttention takes these with any heads."""
FLOATS: Mapping[str, str] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""Precisions without codes, with the element type that pools have beside them."""
CALIBRATION_METHODS = ("minmax", "average", "percentile", "entropy", "mse")

MODEL = (
    "demo, minilm, a folder in Hugging Face format, a hub id (org/name[@revision]), package.module:function, "
    "or a .pt2 or .onnx file"
)
"""What a model may be called; `pipeline.sources` opens them."""


@dataclass(frozen=True)
class SourceRecipe(Section):
    """Where the model comes from, and what may be run to load it."""

    model: str = setting(MISSING, MODEL)
    allow_pickle: bool = setting(False, "read pickled checkpoints too (weights only)")
    trust_remote_code: bool = setting(False, "run Python code that comes with the checkpoint")
    load_seconds: float = setting(
        600.0, "time limit of each call of a user's own code (package.module:function)", minimum=0.1
    )
    example: str | None = setting(
        None, "a .npz with an array for each input of a .onnx file; default: made up"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.model.strip():
            raise BadInput(f"source.model is empty; give {MODEL}")


@dataclass(frozen=True)
class ExportRecipe(Section):
    """From the torch module to ONNX."""

    opset: int = setting(24, "ONNX opset of the exported graph", minimum=24, maximum=24)
    max_length: int | None = setting(
        None,
        f"tokens of prompt and completion; default: the model's own limit, up to {MAX_LENGTH_CAP}",
        minimum=1,
    )

    def resolved_max_length(self, model_limit: int) -> int:
        """Tokens that the engine takes, given the model's own limit. Raises BadInput beyond that limit."""
        if self.max_length is None:
            return min(model_limit, MAX_LENGTH_CAP)
        if self.max_length > model_limit:
            raise BadInput(
                f"export.max_length is {self.max_length}; the model itself takes at most {model_limit} tokens"
            )
        return self.max_length


@dataclass(frozen=True)
class FuseRecipe(Section):
    """Rewriting the graph into fewer nodes."""

    disable: tuple[str, ...] = setting((), "names of fusion rules to leave out")
    equalize: bool = setting(
        False,
        "neighbouring convolutions share the ranges of the channels between them, before anything is rounded",
    )
    rotate: bool = setting(
        False,
        "turn the residual stream by a Hadamard matrix, folded into the weights, before anything is rounded",
    )


@dataclass(frozen=True)
class CalibrateRecipe(Section):
    """What ranges activations are taken to have, and from which data."""

    method: str = setting("mse", "how ranges are chosen", choices=CALIBRATION_METHODS)
    data: str | None = setting(
        None,
        "calibration data: .jsonl, .txt, .npz or a folder of images; default: the demo's calibration text",
    )
    samples: int | None = setting(None, "samples taken; default: what there is, up to 512", minimum=1)
    percentile: float = setting(
        99.99, "percent of the magnitudes that the method 'percentile' covers", minimum=50, maximum=100
    )


@dataclass(frozen=True)
class QuantizeRecipe(Section):
    """The numbers that the engine computes and stores in."""

    precision: str = setting(
        "fp32", "arithmetic and weights of the engine; fp16 on TensorRT", choices=PRECISIONS
    )
    kv_dtype: str = setting(
        "float32", "element type of the key and value pools; 16 bit on TensorRT", choices=KV_DTYPES
    )
    algorithm: str = setting("rtn", "how weights are rounded", choices=ALGORITHMS)
    bias_correction: bool = setting(
        False, "biases of quantized convolutions take up the mean error of their weights' codes"
    )
    block: int = setting(32, "inputs of a weight that share a scale, where scales go by blocks: 32, 64, 128")
    layers: str | None = setting(
        None, "precision mixed: a JSON file with the precision of each weight by its name"
    )

    keep_float32: tuple[str, ...] = setting(
        (),
        "TensorRT: names of nodes that stay in float32; auto: those that 16 bit is found to be too little for",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block not in BLOCKS:
            raise BadInput(f"quantize.block is {self.block}; available: {', '.join(map(str, BLOCKS))}")
        if (self.precision == "mixed") != (self.layers is not None):
            raise BadInput(
                f"quantize.precision is {self.precision!r} and quantize.layers {self.layers!r}; precision mixed "
                "needs a file of precisions by weight, and no other precision takes one"
            )

    @property
    def quantizes(self) -> bool:
        """Whether anything is stored as codes with a scale."""
        return self.precision not in FLOATS or self.kv_dtype not in FLOATS.values()


@dataclass(frozen=True)
class TargetRecipe(Section):
    """What the engine is compiled for, and its limits."""

    name: str = setting("onnxruntime", "where the engine runs", choices=TARGETS)
    threads: int = setting(0, "threads of one engine; 0: all cores", minimum=0)
    max_batch: int = setting(16, "sequences in flight at once", minimum=1)
    token_budget: int = setting(512, "tokens of one step, over all sequences", minimum=1)
    block_size: int = setting(16, "tokens in one cache block", minimum=1, maximum=256)
    num_blocks: int | None = setting(
        None,
        "cache blocks; default: as many as kv_cache_bytes holds, and no more than can be used",
        minimum=1,
    )
    kv_cache_bytes: int = setting(512 * 2**20, "bytes of the key and value pools together", minimum=1)
    compute_capabilities: tuple[str, ...] = setting(
        (), "tensorrt-rtx: GPUs that the engine is compiled for, such as 8.9; default: any that it knows"
    )
    max_sizes: tuple[str, ...] = setting(
        (), "TensorRT: NAME=SIZE, the most of a size that is known only at run time and has no bound"
    )
    plugin_library: str | None = setting(
        None,
        "tensorrt: libslipway_tensorrt.so, the plugins in C++, which the engine's folder then holds; default: the "
        "plugins in Python build it",
    )
    attention: str = setting(
        "native",
        "tensorrt: attention of encoders is its own, or Slipway's plugin FlashAttention, over packed texts",
        choices=("native", "plugin"),
    )
    int4_gemm: str = setting(
        "native",
        "tensorrt: products with int4 weights are its own, or Slipway's plugin Int4Gemm, which is made for few rows",
        choices=("native", "plugin"),
    )
    builder: BuilderRecipe = field(default_factory=BuilderRecipe)

    def __post_init__(self) -> None:
        super().__post_init__()
        for text in self.compute_capabilities:
            if not re.fullmatch(r"[0-9]{1,2}\.[0-9]", text):
                raise BadInput(f"target.compute_capabilities holds {text!r}; they look like 8.9 and 12.0")
        if self.compute_capabilities and self.name != "tensorrt-rtx":
            raise BadInput(
                f"target.compute_capabilities is for target tensorrt-rtx; an engine of target {self.name} is made for "
                "the machine that builds it"
            )
        self.largest_sizes  # noqa: B018  # refuses what is no NAME=SIZE
        if self.builder != BuilderRecipe() and not self.name.startswith("tensorrt"):
            raise BadInput(
                f"the recipe has options of TensorRT's builder (target.builder), and target {self.name} has no builder "
                "of that kind; take them out, or build for tensorrt or tensorrt-rtx"
            )
        asked = [name for name in ("attention", "int4_gemm") if getattr(self, name) == "plugin"]
        if asked and self.name != "tensorrt":
            raise BadInput(
                f"target.{asked[0]} is 'plugin', and target {self.name} takes no plugins; target tensorrt does"
            )
        if self.plugin_library is not None and self.name != "tensorrt":
            raise BadInput(
                f"target.plugin_library is {self.plugin_library!r}; engines of target {self.name} hold none of these "
                "plugins, which target tensorrt alone takes"
            )
        if self.token_budget < self.max_batch:
            raise BadInput(
                f"target.token_budget is {self.token_budget}; it must be at least target.max_batch "
                f"({self.max_batch}), so that every sequence can advance by a token in each step"
            )

    @property
    def largest_sizes(self) -> dict[str, int]:
        """`max_sizes` by name. Raises BadInput for what is no NAME=SIZE."""
        sizes: dict[str, int] = {}
        for text in self.max_sizes:
            name, _, size = text.partition("=")
            if not name or not size.isdecimal() or int(size) < 1:
                raise BadInput(f"target.max_sizes holds {text!r}; it must be NAME=SIZE, as in height=224")
            sizes[name] = int(size)
        return sizes

    def resolved_num_blocks(self, bytes_per_token: int, max_length: int) -> int:
        """Cache blocks for `bytes_per_token` over all layers and sequences of up to `max_length` tokens."""
        if self.num_blocks is not None:
            return self.num_blocks
        useful = self.max_batch * -(-max_length // self.block_size)
        return max(1, min(useful, self.kv_cache_bytes // (bytes_per_token * self.block_size)))


@dataclass(frozen=True)
class ServeRecipe(Section):
    """How the emitted repository serves."""

    max_queue: int = setting(128, "requests that may wait; the next one is answered 'busy'", minimum=1)
    default_max_tokens: int = setting(16, "tokens generated when a request does not say", minimum=1)
    request_timeout_seconds: float = setting(
        600.0, "deadline of a request that sets none, queueing included", minimum=0.001
    )
    capture_folder: str | None = setting(
        None,
        "folder where the server writes requests' tokens, <model>.jsonl, for calibration; default: none are kept",
    )
    capture_bytes: int = setting(64 * 2**20, "size that each of those files grows to at most", minimum=1024)


@dataclass(frozen=True)
class Recipe(Section):
    """One build, whole."""

    source: SourceRecipe
    export: ExportRecipe = field(default_factory=ExportRecipe)
    fuse: FuseRecipe = field(default_factory=FuseRecipe)
    calibrate: CalibrateRecipe = field(default_factory=CalibrateRecipe)
    quantize: QuantizeRecipe = field(default_factory=QuantizeRecipe)
    target: TargetRecipe = field(default_factory=TargetRecipe)
    accept: AcceptRecipe = field(default_factory=AcceptRecipe)
    serve: ServeRecipe = field(default_factory=ServeRecipe)
    parity: ParityRecipe = field(default_factory=ParityRecipe)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.quantize.keep_float32 and not self.target.name.startswith("tensorrt"):
            raise BadInput(
                f"quantize.keep_float32 is {list(self.quantize.keep_float32)}; target {self.target.name} takes no such "
                "choice, which tensorrt and tensorrt-rtx do"
            )

    @classmethod
    def for_model(cls, model: str, target: str = "onnxruntime") -> Recipe:
        """All defaults for one model and target."""
        return cls.from_dict({"source": {"model": model}, "target": {"name": target}})

    @classmethod
    def from_dict(cls, data: Any, where: str = "") -> Recipe:
        """As `Section.from_dict`; a precision, a type of pools and a size of blocks that are not given are the target's
        own."""
        recipe = super().from_dict(data, where)
        quantize, given = recipe.quantize, (data or {}).get("quantize") or {}
        own_blocks = _OWN_BLOCKS.get(recipe.target.name)
        if own_blocks is not None and "block_size" not in ((data or {}).get("target") or {}):
            recipe = replace(recipe, target=replace(recipe.target, block_size=own_blocks))
        if recipe.target.name == "onnxruntime":
            return recipe
        if "precision" not in given:
            quantize = replace(quantize, precision="fp16")
        if "kv_dtype" not in given:
            quantize = replace(quantize, kv_dtype=FLOATS.get(quantize.precision, "float16"))
        return replace(recipe, quantize=quantize)

    @classmethod
    def load(cls, path: Path | str) -> Recipe:
        """Reads YAML. Raises BadInput for a missing or unreadable file and for what `from_dict` refuses."""
        return cls.from_dict(read_yaml(Path(path)))

    def dump(self, path: Path | str) -> None:
        """Writes YAML that `load` reads back as an equal recipe."""
        Path(path).write_text(self.to_yaml(), encoding="utf-8")

    def to_yaml(self) -> str:
        """The recipe as YAML text, sections in order."""
        import yaml

        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=False)


def read_yaml(path: Path) -> dict[str, Any]:
    """The plain values of a recipe file, not yet checked. Raises BadInput when it cannot be read as YAML."""
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"no recipe at {path}; give a YAML file that exists") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(f"{path} is not a readable YAML recipe: {error}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise BadInput(
            f"{path} holds {type(data).__name__}; a recipe is a mapping of sections such as `source:`"
        )
    return data
