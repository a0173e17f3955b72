"""Recipe fields on the command line: every field is an option, and the repeating command gives them back."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from model_repo.runtime.errors import BadInput
from pipeline.builder_recipe import BuilderRecipe
from pipeline.cli.options import SECTIONS, folder_recipe, model_recipe, recipe_options
from pipeline.options import changed_options
from pipeline.recipe import (
    ExportRecipe,
    FuseRecipe,
    Recipe,
    ServeRecipe,
    SourceRecipe,
    TargetRecipe,
)


def parse(arguments: list[str]) -> Recipe:
    """What a command with the options of all sections makes of `arguments`."""
    found: list[Recipe] = []

    @click.command()
    @click.argument("model", required=False)
    @recipe_options(*SECTIONS)
    def command(model: str | None, recipe_file: Path | None, **given: Any) -> None:
        found.append(model_recipe(model, recipe_file, given))

    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return found[0]


RECIPE = Recipe(
    source=SourceRecipe("somewhere/model", trust_remote_code=True),
    export=ExportRecipe(max_length=99),
    fuse=FuseRecipe(disable=("qkv", "swi_glu")),
    target=TargetRecipe(threads=2, num_blocks=50, max_batch=4),
    serve=ServeRecipe(request_timeout_seconds=2.5),
)


def test_changed_options_give_the_same_recipe_back() -> None:
    options = [option for name in SECTIONS for option in changed_options(name, getattr(RECIPE, name))]
    assert parse([RECIPE.source.model, *options]) == RECIPE
    assert [
        option for name in SECTIONS for option in changed_options(name, getattr(parse(["x"]), name))
    ] == []


def test_options_go_on_top_of_a_recipe_file(tmp_path: Path) -> None:
    RECIPE.dump(tmp_path / "recipe.yaml")
    recipe = parse(["--recipe", str(tmp_path / "recipe.yaml"), "--threads", "7"])
    assert recipe == dataclasses.replace(RECIPE, target=dataclasses.replace(RECIPE.target, threads=7))
    assert parse(["other", "--recipe", str(tmp_path / "recipe.yaml")]).source.model == "other"


def test_a_model_or_a_recipe_is_needed(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no MODEL given"):
        model_recipe(None, None, {})
    with pytest.raises(BadInput, match="slipway has not built there"):
        folder_recipe(tmp_path, None, {})


def test_options_of_the_builder_are_a_section_within_the_targets() -> None:
    builder = BuilderRecipe(
        optimization_level=2, decode_batches=(1, 4), strip=True, tactic_sources=("jit-convolutions",)
    )
    recipe = Recipe.from_dict(
        {"source": {"model": "x"}, "target": {"name": "tensorrt", "builder": builder.to_dict()}}
    )
    assert recipe.target.builder == builder
    options = changed_options("target", recipe.target)
    assert options[2:] == [
        *("--optimization-level", "2", "--decode-batch", "1", "--decode-batch", "4"),
        *("--strip", "--tactic-source", "jit-convolutions"),
    ]
    assert parse(["x", *options]) == recipe
    with pytest.raises(BadInput, match=r"builder.decode_batches is \('a',\); it must be a list of numbers"):
        Recipe.from_dict({"source": {"model": "x"}, "target": {"builder": {"decode_batches": ["a"]}}})
