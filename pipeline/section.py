"""Sections of a recipe: frozen dataclasses that check themselves, read plain values and have a hash."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING
from typing import Any, TypeVar

from model_repo.runtime.errors import BadInput

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
                given = data.get(spec.name)
                if spec.default_factory is not MISSING and isinstance(given, Mapping | None):
                    given = {**spec.default_factory().to_dict(), **(given or {})}
                values[spec.name] = kind.from_dict(given, _dotted(where, spec.name))
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
        return isinstance(value, tuple) and all(_has_type(typing.get_args(kind)[0], item) for item in value)
    return isinstance(value, kind)


def _type_in_words(kind: Any) -> str:
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return words.get(kind, "a list of numbers" if int in typing.get_args(kind) else "a list of names")
