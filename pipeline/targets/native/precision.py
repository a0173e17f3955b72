"""A linear graph in 16 bit, as a strongly typed network wants it: caches too, and no node of mixed types."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from model_repo.runtime.errors import BadInput
from pipeline.precision.convert import convert
from pipeline.precision.plan import Plan, Precision, plan

from .linear import narrow_caches


def narrow(model: ir.Model, precision: Precision, keep: Collection[str] = ()) -> None:
    """Converts in place; nodes named in `keep` stay in float32. Logits stay float32.

    Raises BadInput for weights that do not fit the type, by name.
    """
    convert(model, fitting_plan(model, precision, keep))
    narrow_caches(model)


def fitting_plan(model: ir.Model, precision: Precision, keep: Collection[str] = ()) -> Plan:
    """What becomes 16 bit. Raises BadInput for weights that do not fit the type, by name."""
    planned = plan(model, precision, keep)
    if planned.overflows:
        names = ", ".join(f"{found.name} (up to {found.largest:g})" for found in planned.overflows)
        raise BadInput(f"{names} do not fit {precision}; build with bf16, or keep these nodes in float32")
    return planned
