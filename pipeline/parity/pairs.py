"""Which tensors of two graphs of one model are the same: by their names, and by what fusion noted on values."""

from __future__ import annotations

import onnx_ir as ir

from pipeline.notes import SAME_AS


def paired_values(reference: ir.Model, candidate: ir.Model) -> dict[ir.Value, ir.Value]:
    """Value of `candidate` -> the value of `reference` with the same elements in the same order.

    Candidates stand in the order in which their graph computes them. A value is known by its name and by the
    name that it replaced (`SAME_AS`); outputs of the graphs also by their place, when there are as many.
    """
    known: dict[str, ir.Value] = {}
    for name_of in (_name, _replaced):
        for node in reference.graph:
            for value in node.outputs:
                name = name_of(value)
                if name:
                    known.setdefault(name, value)
    ends = _outputs_by_place(reference, candidate)
    pairs: dict[ir.Value, ir.Value] = {}
    for node in candidate.graph:
        for value in node.outputs:
            partner = known.get(_name(value)) or known.get(_replaced(value)) or ends.get(value)
            if partner is not None and value.name:
                pairs[value] = partner
    return pairs


def borrow_notes(model: ir.Model, origin: ir.Model) -> None:
    """Gives values and nodes of `model` what is noted on those of the same name in `origin`, in place.

    ONNX Runtime writes its optimized graphs without notes, and keeps the names of tensors.
    """
    known = {value.name: (value, node) for node in origin.graph for value in node.outputs if value.name}
    for node in model.graph:
        for value in node.outputs:
            if value.name not in known:
                continue
            other, maker = known[value.name]
            value.metadata_props.update(other.metadata_props)
            for key, text in maker.metadata_props.items():
                node.metadata_props.setdefault(key, text)


def _name(value: ir.Value) -> str:
    return value.name or ""


def _replaced(value: ir.Value) -> str:
    return value.metadata_props.get(SAME_AS, "")


def _outputs_by_place(reference: ir.Model, candidate: ir.Model) -> dict[ir.Value, ir.Value]:
    """Outputs of one graph by those of the other, when there are as many and all are computed."""
    wanted, found = reference.graph.outputs, candidate.graph.outputs
    if len(wanted) != len(found):
        return {}
    return {
        after: before
        for before, after in zip(wanted, found, strict=True)
        if before.producer() is not None and after.producer() is not None
    }
