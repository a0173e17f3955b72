"""Targets by name, and what they say of themselves."""

from __future__ import annotations

import pytest

from model_repo.runtime.errors import BadInput
from pipeline.recipe import TARGETS, Recipe, TargetRecipe
from pipeline.targets import BucketRule, get_target, target_names


@pytest.mark.parametrize("name", ["onnxruntime-rocm", "", "ONNXRuntime", "tensorrt_rtx"])
def test_an_unknown_target_is_refused_with_those_that_exist(name: str) -> None:
    with pytest.raises(BadInput, match=r"this version has: onnxruntime\b") as refused:
        get_target(name)
    assert repr(name) in str(refused.value)
    assert refused.value.exit_code == 2


def test_a_near_name_is_suggested() -> None:
    with pytest.raises(BadInput, match="did you mean 'onnxruntime'"):
        get_target("onnx-runtime")


def test_the_recipe_and_the_registry_know_the_same_targets() -> None:
    assert set(TARGETS) == set(target_names())


@pytest.mark.parametrize("name", target_names())
def test_a_target_describes_itself(name: str) -> None:
    descriptor = get_target(name).descriptor
    assert descriptor.name == name
    assert TargetRecipe().name in target_names()
    recipe = Recipe.for_model("demo", name)
    assert recipe.quantize.precision in descriptor.precisions
    assert recipe.quantize.kv_dtype in descriptor.kv_dtypes


@pytest.mark.parametrize(
    ("rule", "sizes"),
    [
        (BucketRule(1, 1), {1: 1, 2: 2, 511: 511}),
        (BucketRule(2, 1), {1: 2, 2: 2, 3: 3}),
        (BucketRule(4, 8), {1: 8, 8: 8, 9: 16, 16: 16}),
    ],
)
def test_a_bucket_holds_its_tokens(rule: BucketRule, sizes: dict[int, int]) -> None:
    assert {tokens: rule.padded(tokens) for tokens in sizes} == sizes
