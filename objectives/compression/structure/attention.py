"""Detection of linear layers that make an attention's queries, keys and values, or read its output."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch.fx import Node

from objectives.compression.structure.program import MOVES, Flow, nearest, operator_name

_SOFTMAX = ("_softmax", "_safe_softmax")
_PRODUCTS = ("bmm", "mm", "addmm", "baddbmm")


def attention_weights(flow: Flow) -> set[str]:
    """Return the names of the weights of an attention's layers."""
    names = {node: name for name, nodes in flow.places.items() for node in nodes}
    found: set[str] = set()
    for softmax in flow.program.graph.nodes:
        if operator_name(softmax) not in _SOFTMAX:
            continue
        scores = next(_back(softmax.args[:1], _PRODUCTS), None)
        mixing = [node for node in _forth(softmax) if not _weights(node, names)]
        if scores is None or not mixing or _weights(scores, names):
            continue  # weights of something other than products of queries and keys
        makers = (layer for product in (scores, *mixing) for layer in _back(product.args, ("mm", "addmm")))
        readers = (layer for mixed in mixing for layer in _forth(mixed))
        found.update(*(_weights(layer, names) for layer in (*makers, *readers)))
    return found


def _transparent(node: Node) -> bool:
    return operator_name(node) in MOVES or torch.Tag.pointwise in getattr(node.target, "tags", ())


def _back(start: Iterable[object], wanted: tuple[str, ...]) -> Iterator[Node]:
    """Iterate over the nearest of these operators that values come from; others only move or scale the values."""
    return nearest(start, lambda n: operator_name(n) in wanted, _transparent, lambda n: n.all_input_nodes)


def _forth(start: Node) -> Iterator[Node]:
    """Iterate over the nearest products that read a value."""
    return nearest(start.users, lambda n: operator_name(n) in _PRODUCTS, _transparent, lambda n: n.users)


def _weights(layer: Node, names: Mapping[Node, str]) -> set[str]:
    """Return the parameter matrix that a product multiplies by, directly or transposed."""
    found = set()
    for side in layer.all_input_nodes:
        source = side
        while operator_name(source) in ("permute", "t", "transpose", "view") and source.all_input_nodes:
            source = source.all_input_nodes[0]
        if source in names and len(source.meta["val"].shape) == 2:
            found.add(names[source])
    return found
