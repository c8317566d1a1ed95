"""Detection of linear layers that make an attention's queries, keys and values, or read its output, by the program's
shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch.fx import Node

from objectives.compression.structure.program import MOVES, nearest, operator_name

_SOFTMAX = ("_softmax", "_safe_softmax")
_PRODUCTS = ("bmm", "mm", "addmm", "baddbmm")


def attention_weights(nodes: Mapping[Node, str]) -> set[str]:
    """Return the names of the weights of an attention's layers.

    Args:
        nodes: nodes of the program that represent a parameter, with its name
    """
    if not nodes:
        return set()
    found: set[str] = set()
    graph = next(iter(nodes)).graph
    for softmax in graph.nodes:
        if operator_name(softmax) not in _SOFTMAX:
            continue
        scores = next(iter(_back(softmax.args[0], _PRODUCTS)), None)
        mixing = [node for node in _forth(softmax) if not _weights(node, nodes)]
        if scores is None or not mixing or _weights(scores, nodes):
            continue  # weights of something other than products of queries and keys
        for product in (scores, *mixing):
            for side in product.args:
                if isinstance(side, Node):
                    for layer in _back(side, ("mm", "addmm")):
                        found |= _weights(layer, nodes)
        for mixed in mixing:
            for layer in _forth(mixed):
                found |= _weights(layer, nodes)
    return found


def _transparent(node: Node) -> bool:
    return operator_name(node) in MOVES or torch.Tag.pointwise in getattr(node.target, "tags", ())


def _back(start: object, wanted: tuple[str, ...]) -> Iterator[Node]:
    """Iterate over the nearest of these operators that a value comes from, through operators that only move or scale
    it.
    """
    return nearest([start], lambda n: operator_name(n) in wanted, _transparent, lambda n: n.all_input_nodes)


def _forth(start: Node) -> Iterator[Node]:
    """Iterate over the nearest products that read a value."""
    return nearest(start.users, lambda n: operator_name(n) in _PRODUCTS, _transparent, lambda n: n.users)


def _weights(layer: Node, nodes: Mapping[Node, str]) -> set[str]:
    """Return the parameter matrix that a product multiplies by, directly or transposed."""
    found = set()
    for side in layer.all_input_nodes:
        source = side
        while operator_name(source) in ("permute", "t", "transpose", "view") and source.all_input_nodes:
            source = source.all_input_nodes[0]
        if source in nodes and len(source.meta["val"].shape) == 2:
            found.add(nodes[source])
    return found
