"""torch.export and the ONNX translation in one call, quiet, with nothing optimized."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import torch
from torch import nn
from torch.export import ExportedProgram

from .attention import UnsupportedModel
from .decompositions import replace_decomposed
from .to_onnx import to_onnx


def trace(
    module: nn.Module,
    arguments: tuple[Any, ...],
    *,
    dynamic_shapes: tuple[Any, ...],
    input_names: Sequence[str],
    output_names: Sequence[str],
    opset: int,
) -> ir.Model:
    """The graph of `module(*arguments)`; weights keep the module's names and memory.

    Not strict: the attention handlers travel in a context variable, which strict tracing cannot see.
    Unoptimized: the exporter's optimizer folds transposes into weights and renames them. `module` holds the
    model under the name `model`. Raises UnsupportedModel when torch cannot export it.
    """
    with _unsupported(type(module.model).__name__):
        with torch.no_grad(), _quiet():
            program = torch.export.export(
                module.eval(), arguments, dynamic_shapes=dynamic_shapes, strict=False
            )
            replace_decomposed(program)
        return translate(
            program,
            dynamic_shapes=dynamic_shapes,
            input_names=input_names,
            output_names=output_names,
            opset=opset,
        )


def translate(
    program: ExportedProgram,
    *,
    dynamic_shapes: tuple[Any, ...],
    input_names: Sequence[str],
    output_names: Sequence[str],
    opset: int,
) -> ir.Model:
    """The graph of a program that torch.export gave, unoptimized. Raises UnsupportedModel."""
    with _unsupported("the program"), torch.no_grad(), _quiet():
        return to_onnx(
            program,
            dynamic_shapes=dynamic_shapes,
            input_names=input_names,
            output_names=output_names,
            opset=opset,
        )


@contextmanager
def _unsupported(what: str) -> Iterator[None]:
    """Turns the exporter's errors, which share no base, into UnsupportedModel."""
    try:
        yield
    except UnsupportedModel:
        raise
    except Exception as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise UnsupportedModel(
            f"torch cannot export {what}: {reason}; models whose operations depend on values (not only on shapes) "
            "are not supported"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides the exporter's notes about itself (axis names used twice, no torchvision, deprecations)."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
