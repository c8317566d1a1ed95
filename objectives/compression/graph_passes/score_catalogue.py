"""Rewriting of a graph that multiplies a whole table with a request's vector, and looks the products up by item."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir

from objectives.onnx_graph import (
    add_before,
    finish,
    forget_shapes,
    has_control_flow,
    infer,
    initializer,
    integers,
    operands,
    shape_of,
    turn_into,
)


class CatalogueError(ValueError):
    """No product of the graph can be computed for a whole table; the message has the reason."""


@dataclass(frozen=True)
class _Product:
    """Product of looked-up rows of a table, (N, d), with one vector of the request, (d,).

    node: gives the products of all N rows, in the shape `target`, where -1 stands for N
    alpha: factor of the products
    """

    table: ir.Value
    ids: ir.Value
    vector: ir.Value
    node: ir.Node
    target: tuple[int, ...]
    alpha: float = 1.0


def score_catalogue(model: ir.Model) -> ir.Model:
    """Copy a graph in which products of looked-up rows with one vector are computed for all rows of the table.

    The result is the same: E[ids] u = (E u)[ids]. A product with a whole table reads it in one piece, and what is
    looked up then is one number of each item, where copying a row of each may take most of a request; so it pays where
    requests have a good part of the table's rows.

    Args:
        model: with tables in fp32; inputs of the user's side have one row

    Raises:
        CatalogueError: there is no such product, or control flow.
    """
    made = infer(model)
    for number, product in enumerate(_products(made)):
        _rewrite(made.graph, product, f"catalogue.{number}")
    forget_shapes(made.graph)
    for value, before in zip(made.graph.outputs, model.graph.outputs, strict=True):
        value.shape = before.shape and before.shape.copy()
    return finish(made)


def catalogue_rows(model: ir.Model) -> int:
    """Return the number of rows of the tables that `score_catalogue` multiplies; CatalogueError as there."""
    tables = {product.table for product in _products(infer(model))}
    return sum(int(shape_of(table).numpy()[0]) for table in tables)


def _products(model: ir.Model) -> list[_Product]:
    """Return the products of a graph with known shapes, or raise CatalogueError."""
    if has_control_flow(model):
        raise CatalogueError("A graph without branches and loops can be rewritten, but got one with them.")
    found = [product for node in model.graph if (product := _product(node)) is not None]
    if not found:
        raise CatalogueError("A score is a product of an item's row in a table and one vector, but got none that is.")
    return found


def _product(lookup: ir.Node) -> _Product | None:
    """Return the product that a lookup is for, None where it is for anything else or for more."""
    if lookup.op_type != "Gather" or lookup.domain or lookup.attributes.get_int("axis", 0) != 0:
        return None
    (table, ids), rows, turned = operands(lookup), lookup.outputs[0], False
    if not table.is_initializer() or table.dtype != ir.DataType.FLOAT or ids.is_initializer():
        return None
    if ids.shape is None or len(shape_of(table)) != 2 or len(ids.shape) != 1:
        return None
    reader = _only_reader(rows)
    if reader is not None and reader.op_type == "Transpose":
        turned = tuple(reader.attributes.get_ints("perm", (1, 0))) == (1, 0)
        rows, reader = reader.outputs[0], _only_reader(reader.outputs[0])
    if reader is None or reader.domain or len(reader.inputs) != 2 or reader.inputs[0] is reader.inputs[1]:
        return None
    first = reader.inputs[0] is rows
    vector = reader.inputs[1 if first else 0]
    width = shape_of(table)[1]
    # A product with a constant is one of the model's layers.
    if vector is None or vector.is_initializer() or vector.shape is None or len(vector.shape) not in (1, 2):
        return None
    # One row in all: a size that is not fixed may be that of the request's rows.
    if prod(size if isinstance(size, int) else 0 for size in vector.shape) != width:
        return None
    if reader.op_type == "Mul" and not turned:
        return _summed(table, ids, vector, reader)
    if reader.op_type not in ("Gemm", "MatMul"):
        return None
    across = turned != bool(reader.attributes.get_int("transA" if first else "transB", 0))
    if across == first:
        return None
    alone = len(vector.shape) == 1
    target = (-1,) if alone else (-1, 1) if first else (1, -1)
    return _Product(table, ids, vector, reader, target, reader.attributes.get_float("alpha", 1.0))


def _summed(table: ir.Value, ids: ir.Value, vector: ir.Value, product: ir.Node) -> _Product | None:
    """Return the product whose terms are multiplied and then summed, None where they are not."""
    total = _only_reader(product.outputs[0])
    if total is None or total.op_type != "ReduceSum" or shape_of(vector)[-1] != shape_of(table)[1]:
        return None
    axes = integers(total.inputs[1]) if len(total.inputs) > 1 else tuple(total.attributes.get_ints("axes", ()))
    if axes not in ((1,), (-1,)):
        return None
    return _Product(table, ids, vector, total, (-1, 1) if total.attributes.get_int("keepdims", 1) else (-1,))


def _only_reader(value: ir.Value) -> ir.Node | None:
    readers = value.consumers()
    return readers[0] if len(readers) == 1 and not value.is_graph_output() else None


def _rewrite(graph: ir.Graph, product: _Product, name: str) -> None:
    """Multiply the vector with the whole table, and look the products up."""
    node, one = product.node, initializer(graph, "catalogue.first", np.array([0]))
    # The vector is on the left: ONNX Runtime takes ten times as long for a matrix times a vector.
    width = shape_of(product.table).numpy()[1]
    wide = initializer(graph, f"catalogue.{width}", np.array([1, width]))
    vector = add_before(node, "Reshape", [product.vector, wide], f"{name}.vector")
    scaled = {"transB": 1, "alpha": product.alpha}
    scores = add_before(node, "Gemm", [vector, product.table], f"{name}.scores", None, scaled)
    places = add_before(node, "Unsqueeze", [product.ids, one], f"{name}.places")
    # For one number of each item, Gather takes eight times as long.
    if product.target == (1, -1):
        turn_into(node, "GatherElements", [scores, places], None, {"axis": 1})
        return
    found = add_before(node, "GatherElements", [scores, places], f"{name}.found", None, {"axis": 1})
    target = initializer(graph, f"{name}.shape", np.array(product.target))
    turn_into(node, "Reshape", [found, target])
