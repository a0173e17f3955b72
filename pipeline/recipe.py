"""The recipe: everything that decides what is built, as nested frozen dataclasses, YAML on disk.

Each section belongs to one part of the way and is hashed by itself, so that changing how a model is served
does not export it again. A recipe that exists is valid: construction checks every field and raises BadInput
with the field, the value and what is allowed. Nothing but the recipe changes what is built.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from model_repo.runtime.errors import BadInput

MAX_LENGTH_CAP = 4096
"""Tokens: without `export.max_length`, the most that is taken of a model's own limit; caches grow with it."""

PRECISIONS = ("fp32",)
KV_DTYPES = ("float32",)
TARGETS = ("onnxruntime",)

MODEL = (
    "demo, minilm, a folder in Hugging Face format, a hub id (org/name[@revision]), package.module:function, "
    "or a .pt2 or .onnx file"
)
"""What a model may be called; `pipeline.sources` opens them."""

T = TypeVar("T", bound="Section")


def setting(
    default: Any,
    help_text: str,
    *,
    choices: tuple[str, ...] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
) -> Any:
    """A recipe field with its help text and what is allowed; the command line reads both from here."""
    metadata = {"help": help_text, "choices": choices, "minimum": minimum, "maximum": maximum}
    if default is MISSING:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


class Section:
    """Base of the recipe's dataclasses: checked at construction, convertible to and from plain values."""

    def __post_init__(self) -> None:
        for spec in dataclasses.fields(typing.cast(Any, self)):
            _check(type(self), spec, getattr(self, spec.name))

    @property
    def sha256(self) -> str:
        """Hash of this section's values, in hex."""
        from model_repo.runtime.manifest import sha256_of_json  # imports numpy, which --help must not

        return sha256_of_json(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Plain YAML and JSON values; `from_dict` reads them back."""
        return {
            spec.name: _plain(getattr(self, spec.name)) for spec in dataclasses.fields(typing.cast(Any, self))
        }

    @classmethod
    def from_dict(cls: type[T], data: Any, where: str = "") -> T:
        """The inverse of `to_dict`; absent fields take their defaults.

        `where` is the dotted place of this section, for messages. Raises BadInput for unknown keys (with the
        nearest known one), for missing required ones and for values that are not allowed.
        """
        if data is None:
            data = {}
        if not isinstance(data, Mapping):
            raise BadInput(
                f"recipe section {where or 'recipe'} is {data!r}; it must hold `name: value` lines"
            )
        hints = field_types(cls)
        for key in data:
            if key not in hints:
                raise BadInput(
                    f"unknown key {_dotted(where, str(key))!r} in the recipe"
                    f"{_suggestion(str(key), list(hints))}; known there: {', '.join(hints)}"
                )
        values: dict[str, Any] = {}
        for spec in dataclasses.fields(typing.cast(Any, cls)):
            kind = hints[spec.name]
            if isinstance(kind, type) and issubclass(kind, Section):
                values[spec.name] = kind.from_dict(data.get(spec.name), _dotted(where, spec.name))
            elif spec.name in data:
                value = data[spec.name]
                values[spec.name] = tuple(value) if isinstance(value, list) else value
            elif spec.default is MISSING and spec.default_factory is MISSING:
                raise BadInput(f"the recipe says no {_dotted(where, spec.name)!r}; {spec.metadata['help']}")
        return cls(**values)


def field_types(section: type[Section]) -> dict[str, Any]:
    """The declared type of each field of a section, resolved."""
    return typing.get_type_hints(section)


def _dotted(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _suggestion(given: str, known: list[str]) -> str:
    near = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return value.to_dict()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _check(section: type[Section], spec: dataclasses.Field[Any], value: Any) -> None:
    """Raises BadInput unless `value` has the field's type and lies within what the field allows."""
    kind = field_types(section)[spec.name]
    name = f"{section.__name__.removesuffix('Recipe').lower()}.{spec.name}"
    optional = isinstance(kind, types.UnionType) and type(None) in typing.get_args(kind)
    if optional:
        if value is None:
            return
        (kind,) = (part for part in typing.get_args(kind) if part is not type(None))
    if not _has_type(kind, value):
        raise BadInput(
            f"{name} is {value!r}; it must be {_type_in_words(kind)}{' or empty' if optional else ''}"
        )
    choices = spec.metadata.get("choices")
    if choices is not None and value not in choices:
        raise BadInput(f"{name} is {value!r}; available in this version: {', '.join(choices)}")
    minimum, maximum = spec.metadata.get("minimum"), spec.metadata.get("maximum")
    # Negated comparisons, so that a NaN is refused too.
    if minimum is not None and not value >= minimum:
        raise BadInput(f"{name} is {value!r}; it must be at least {minimum:g}")
    if maximum is not None and not value <= maximum:
        raise BadInput(f"{name} is {value!r}; it must be at most {maximum:g}")


def _has_type(kind: Any, value: Any) -> bool:
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if typing.get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(isinstance(item, str) for item in value)
    return isinstance(value, kind)


def _type_in_words(kind: Any) -> str:
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return words.get(kind, "a list of names")


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


@dataclass(frozen=True)
class QuantizeRecipe(Section):
    """The numbers that the engine computes and stores in."""

    precision: str = setting("fp32", "arithmetic and weights of the engine", choices=PRECISIONS)
    kv_dtype: str = setting("float32", "element type of the key and value pools", choices=KV_DTYPES)


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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.token_budget < self.max_batch:
            raise BadInput(
                f"target.token_budget is {self.token_budget}; it must be at least target.max_batch "
                f"({self.max_batch}), so that every sequence can advance by a token in each step"
            )

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


@dataclass(frozen=True)
class Tolerance(Section):
    """How far a stage may be from the one before it."""

    min_cosine: float = setting(0.99999, "least cosine of any row of outputs", minimum=-1, maximum=1)
    min_top1: float = setting(1.0, "least share of rows with the same largest logit", minimum=0, maximum=1)
    max_relative: float = setting(
        1e-3, "named tensors: largest difference of a row, relative to the row's norm", minimum=0
    )


@dataclass(frozen=True)
class ParityRecipe(Section):
    """Tolerance of each stage against the one before; beyond it the build ends with exit code 3."""

    export: Tolerance = field(default_factory=Tolerance)  # exported graph against the torch module
    fuse: Tolerance = field(default_factory=Tolerance)  # fused against exported graph
    lower: Tolerance = field(default_factory=Tolerance)  # lowered against fused graph
    compile: Tolerance = field(default_factory=Tolerance)  # engine against lowered graph


@dataclass(frozen=True)
class Recipe(Section):
    """One build, whole."""

    source: SourceRecipe
    export: ExportRecipe = field(default_factory=ExportRecipe)
    fuse: FuseRecipe = field(default_factory=FuseRecipe)
    quantize: QuantizeRecipe = field(default_factory=QuantizeRecipe)
    target: TargetRecipe = field(default_factory=TargetRecipe)
    serve: ServeRecipe = field(default_factory=ServeRecipe)
    parity: ParityRecipe = field(default_factory=ParityRecipe)

    @classmethod
    def for_model(cls, model: str) -> Recipe:
        """All defaults for one model."""
        return cls(SourceRecipe(model))

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
