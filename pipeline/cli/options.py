"""Recipe sections as command-line options, and a recipe from what was given."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from model_repo.runtime.errors import BadInput
from pipeline.options import option_name
from pipeline.recipe import (
    MODEL,
    CalibrateRecipe,
    ExportRecipe,
    FuseRecipe,
    QuantizeRecipe,
    Recipe,
    ServeRecipe,
    SourceRecipe,
    TargetRecipe,
    read_yaml,
)
from pipeline.section import Section, field_types

F = TypeVar("F", bound=Callable[..., Any])

SECTIONS: Mapping[str, type[Section]] = {
    "source": SourceRecipe,
    "export": ExportRecipe,
    "fuse": FuseRecipe,
    "calibrate": CalibrateRecipe,
    "quantize": QuantizeRecipe,
    "target": TargetRecipe,
    "serve": ServeRecipe,
}
"""Sections whose fields are options. Tolerances (`parity`) are set in a recipe file."""

_SEPARATOR = "__"


def recipe_options(*sections: str) -> Callable[[F], F]:
    """Adds the fields of these sections, and --recipe, as options; the command gets them as keywords.

    An option that is not given is None (or empty), so that a recipe file's value stays.
    """

    def decorate(function: F) -> F:
        for section in reversed(sections):
            function = _options(section, SECTIONS[section])(function)
        return click.option(
            "--recipe",
            "recipe_file",
            type=click.Path(path_type=Path),
            help="YAML recipe to start from; options given here go on top",
        )(function)

    return decorate


def _options(section: str, cls: Any) -> Callable[[F], F]:
    """An option for each field of a section and of the sections in it."""

    def decorate(function: F) -> F:
        kinds = field_types(cls)
        for field in reversed(dataclasses.fields(cls)):
            kind = kinds[field.name]
            if isinstance(kind, type) and issubclass(kind, Section):
                function = _options(f"{section}.{field.name}", kind)(function)
            elif (section, field.name) != ("source", "model"):  # the argument MODEL
                function = _option(section, field, kind)(function)
        return function

    return decorate


def output_option(function: F) -> F:
    """--output: the folder of one model's artifacts."""
    return click.option(
        "--output",
        type=click.Path(path_type=Path),
        help="folder of this model's artifacts  [default: build/<model>]",
    )(function)


def model_recipe(model: str | None, recipe_file: Path | None, given: Mapping[str, Any]) -> Recipe:
    """The recipe of MODEL: defaults, then the recipe file, then options. Raises BadInput."""
    data: dict[str, Any] = read_yaml(recipe_file) if recipe_file is not None else {}
    if model is not None:
        _section(data, "source")["model"] = model
    elif recipe_file is None:
        raise BadInput(f"no MODEL given; give {MODEL}, or --recipe FILE")
    return _with_options(data, given)


def folder_recipe(folder: Path, recipe_file: Path | None, given: Mapping[str, Any]) -> Recipe:
    """The recipe that `folder` was built with, or the file's, with options on top. Raises BadInput."""
    from pipeline.workspace import RECIPE  # imports numpy, which --help must not

    path = recipe_file or folder / RECIPE
    if recipe_file is None and not path.is_file():
        raise BadInput(
            f"{folder} holds no {RECIPE}, so slipway has not built there; run `slipway build MODEL --output "
            f"{folder}` first"
        )
    return _with_options(read_yaml(path), given)


def default_output(output: Path | None, recipe: Recipe) -> Path:
    """The folder given, or build/<the model's name>."""
    from pipeline.sources.names import model_name

    return output if output is not None else Path("build") / model_name(recipe.source.model)


def _with_options(data: dict[str, Any], given: Mapping[str, Any]) -> Recipe:
    for key, value in given.items():
        if value is None or value == ():
            continue
        *sections, field = key.split(_SEPARATOR)
        place = data
        for section in sections:
            place = _section(place, section)
        place[field] = value
    return Recipe.from_dict(data)


def _section(data: dict[str, Any], name: str) -> dict[str, Any]:
    """The section's own mapping in `data`; a section that is something else is refused. Raises BadInput."""
    section = data.setdefault(name, {})
    if not isinstance(section, dict):
        raise BadInput(f"recipe section {name} is {section!r}; it must hold `name: value` lines")
    return section


def _option(section: str, field: dataclasses.Field[Any], kind: Any) -> Callable[[F], F]:
    """One click option for one recipe field. Values are judged by the recipe, which names the field."""
    if isinstance(kind, types.UnionType):
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    help_text = _help(field)
    name = option_name(section, field.name)
    parameter = _SEPARATOR.join((*section.split("."), field.name))
    if kind is bool:
        return click.option(name, parameter, is_flag=True, default=None, help=help_text)
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        return click.option(name, parameter, type=item, multiple=True, help=f"{help_text}; may be repeated")
    return click.option(name, parameter, type=kind, default=None, help=help_text)


def _help(field: dataclasses.Field[Any]) -> str:
    text: str = field.metadata["help"]
    choices = field.metadata.get("choices")
    if choices is not None:
        text += f": {', '.join(choices)}"
    if field.default in (dataclasses.MISSING, None, ()) or isinstance(field.default, bool):
        return text
    return f"{text}  [default: {field.default}]"
