"""Products with a transposed weight: the weight is stored as the product reads it.

torch keeps a linear layer's weight as [out, in] and the export transposes it at run time. A weight that only
such products read is stored as [in, out]. A weight that others read too (the embedding table that is also
the language head) stays as it is, and the product becomes Gemm(transB=1), so that the table exists once.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from .matching import add_weight, dims, insert_before, is_weight, node_name, output, rank, replace
from .rule import Matches, NearMiss, Rule
from .weights import transposed, transposed_origin, write_origin


class Linear(Rule):
    """Anchored at the Transpose of a constant matrix."""

    name: ClassVar[str] = "linear"

    def rewrite(self, model: ir.Model) -> Matches:
        """Counts the Transpose nodes that went away."""
        count, missed = 0, []
        for node in list(model.graph):
            weight = node.inputs[0] if node.op_type == "Transpose" and node.domain == "" else None
            if weight is None or not is_weight(weight) or len(dims(weight) or ()) != 2:
                continue
            if _permutation(node) != (1, 0) or node.outputs[0].is_graph_output():
                continue
            if all(_permutation(reader) == (1, 0) for reader in weight.consumers()):
                _store_transposed(model.graph, weight)
                count += 1
                continue
            obstacle = _multiply_as_stored(node, weight)
            if obstacle is None:
                count += 1
            else:
                missed.append(NearMiss(node_name(node), obstacle))
        return Matches(count, tuple(missed))


def _permutation(node: ir.Node) -> tuple[int, ...] | None:
    """The permutation of a Transpose of a matrix; None for any other node."""
    if node.op_type != "Transpose" or node.domain != "":
        return None
    attribute = node.attributes.get("perm")
    return (1, 0) if attribute is None else tuple(attribute.as_ints())


def _store_transposed(graph: ir.Graph, weight: ir.Value) -> None:
    """Everyone who read a Transpose of `weight` reads a weight stored that way, under the same name."""
    readers = [node.outputs[0] for node in weight.consumers()]
    name = weight.name or ""
    tensor, origins = transposed(weight), transposed_origin(weight)
    del graph.initializers[name]
    weight.name = f"{name}.as_exported"
    stored = add_weight(graph, tensor, name)
    if origins:
        write_origin(stored, origins)
    for reader in readers:
        reader.replace_all_uses_with(stored)


def _multiply_as_stored(transpose: ir.Node, weight: ir.Value) -> str | None:
    """Turns the products with a Transpose of `weight` into Gemm(transB=1); gives the reason if it cannot."""
    result = transpose.outputs[0]
    products = list(result.consumers())
    for product in products:
        if product.op_type != "MatMul" or product.domain != "" or product.inputs[1] is not result:
            return f"{weight.name} is read as it is too, and its transpose by a {product.op_type}"
        if rank(product.inputs[0]) != 2:
            return (
                f"{weight.name} is read as it is too, and the product with its transpose is not of a matrix"
            )
    for product in products:
        old = product.outputs[0]
        gemm = ir.node(
            "Gemm",
            [product.inputs[0], weight],
            {"transB": 1},
            outputs=[output(f"{old.name}_gemm", old.dtype, dims(old))],
            name=node_name(product),
            metadata_props=dict(product.metadata_props),
        )
        replace(old, insert_before(product, gemm))
    return None
