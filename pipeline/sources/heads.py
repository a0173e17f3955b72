"""What an encoder ends in, from a checkpoint's config.json: its head, the labels, and what makes scores of logits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model_repo.runtime.contract import Activation, Head, HeadKind
from model_repo.runtime.errors import BadInput

HEAD_SUFFIXES: Mapping[str, HeadKind] = {
    "ForSequenceClassification": "sequence_classification",
    "ForTokenClassification": "token_classification",
}
"""Ends of class names -> the head that they stand for."""

PROBLEM_TYPES: Mapping[str, Activation] = {
    "single_label_classification": "softmax",
    "multi_label_classification": "sigmoid",
    "regression": "none",
}
"""transformers' `problem_type` -> what makes scores."""

_DEFAULT_LABELS = 2  # transformers' own, where a config says nothing


def head_of(config: Mapping[str, Any], config_file: Path) -> Head:
    """The head that the config's first architecture names; embeddings where it names none.

    Raises BadInput when labels or problem type cannot be used.
    """
    architecture = str(config["architectures"][0])
    for suffix, kind in HEAD_SUFFIXES.items():
        if architecture.endswith(suffix):
            labels = label_names(config, config_file)
            softmax = kind == "token_classification"
            return Head(kind, labels, "softmax" if softmax else _activation(config, config_file, len(labels)))
    return Head()


def label_names(config: Mapping[str, Any], config_file: Path) -> tuple[str, ...]:
    """Names in the order of the logits; LABEL_0 and so on where the config has none."""
    named = config.get("id2label")
    if named is None:
        count = config.get("num_labels", config.get("_num_labels", _DEFAULT_LABELS))
        if not isinstance(count, int) or count < 1:
            raise BadInput(f"{config_file}: num_labels is {count!r}; it must be a positive whole number")
        return tuple(f"LABEL_{place}" for place in range(count))
    try:
        by_place = {int(place): str(label) for place, label in named.items()}
    except (AttributeError, TypeError, ValueError):
        by_place = {}
    if not by_place or sorted(by_place) != list(range(len(by_place))):
        raise BadInput(
            f"{config_file}: id2label is {named!r:.200}; it must name the labels 0, 1, ... without a gap"
        )
    return tuple(label for _, label in sorted(by_place.items()))


def _activation(config: Mapping[str, Any], config_file: Path, num_labels: int) -> Activation:
    """Several labels: as transformers' text-classification pipeline. One: the logit, or its sigmoid where
    sentence-transformers' settings of the cross-encoder say so."""
    problem = config.get("problem_type")
    if problem is not None and problem not in PROBLEM_TYPES:
        raise BadInput(
            f"{config_file}: problem_type is {problem!r}; known are {', '.join(PROBLEM_TYPES)}, or none"
        )
    if problem == "multi_label_classification":
        return "sigmoid"
    if num_labels > 1:
        return "softmax" if problem is None else PROBLEM_TYPES[problem]
    function = _cross_encoder_function(config)
    if function in ("", "Identity"):
        return "none"
    if function == "Sigmoid":
        return "sigmoid"
    raise BadInput(
        f"{config_file}: the score's activation is {function!r}; Sigmoid and Identity are supported"
    )


def _cross_encoder_function(config: Mapping[str, Any]) -> str:
    """Class name of the activation in sentence-transformers' settings, now or before its release 4; '' for none."""
    settings = config.get("sentence_transformers")
    given = settings.get("activation_fn") if isinstance(settings, Mapping) else None
    given = given or config.get("sbert_ce_default_activation_function") or ""
    return str(given).rpartition(".")[2]
