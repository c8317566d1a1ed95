"""Which linear layers make queries, keys and values of an attention, or read what it mixed: by the program's shape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch.fx import Node

_SOFTMAX = ("_softmax", "_safe_softmax")
_PRODUCTS = ("bmm", "mm", "addmm", "baddbmm")
_MOVES = frozenset(
    (
        "view", "reshape", "_unsafe_view", "permute", "t", "transpose", "expand", "clone", "unsqueeze", "squeeze",
        "_to_copy", "slice", "select", "split_with_sizes", "getitem", "index_select", "alias", "detach", "cat",
    )
)  # fmt: skip


def attention_weights(nodes: Mapping[Node, str]) -> set[str]:
    """Names of the weights of those layers.

    Args:
        nodes: of the program, those that stand for a parameter, and its name
    """
    if not nodes:
        return set()
    found: set[str] = set()
    graph = next(iter(nodes)).graph
    for softmax in graph.nodes:
        if _name(softmax) not in _SOFTMAX:
            continue
        scores = next(iter(_back(softmax.args[0], _PRODUCTS)), None)
        mixing = [node for node in _forth(softmax) if not _weights(node, nodes)]
        if scores is None or not mixing or _weights(scores, nodes):
            continue  # weights of something else than products of queries and keys
        for product in (scores, *mixing):
            for side in product.args:
                if isinstance(side, Node):
                    for layer in _back(side, ("mm", "addmm")):
                        found |= _weights(layer, nodes)
        for mixed in mixing:
            for layer in _forth(mixed):
                found |= _weights(layer, nodes)
    return found


def _name(node: object) -> str:
    if not isinstance(node, Node) or node.op != "call_function":
        return ""
    schema = getattr(node.target, "_schema", None)
    return schema.name.rpartition("::")[2] if schema is not None else getattr(node.target, "__name__", "")


def _transparent(node: Node) -> bool:
    return _name(node) in _MOVES or torch.Tag.pointwise in getattr(node.target, "tags", ())


def _back(start: object, wanted: tuple[str, ...]) -> Iterator[Node]:
    """The nearest of these operators that a value comes from, through what only moves or scales."""
    stack, seen = [start], set()
    while stack:
        node = stack.pop()
        if not isinstance(node, Node) or node in seen:
            continue
        seen.add(node)
        if _name(node) in wanted:
            yield node
        elif _transparent(node):
            stack.extend(node.all_input_nodes)


def _forth(start: Node) -> Iterator[Node]:
    """The nearest products that read a value."""
    stack, seen = list(start.users), set()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if _name(node) in _PRODUCTS:
            yield node
        elif _transparent(node):
            stack.extend(node.users)


def _weights(layer: Node, nodes: Mapping[Node, str]) -> set[str]:
    """The parameter matrix that a product multiplies by, as it is or turned."""
    found = set()
    for side in layer.all_input_nodes:
        source = side
        while _name(source) in ("permute", "t", "transpose", "view") and source.all_input_nodes:
            source = source.all_input_nodes[0]
        if source in nodes and len(source.meta["val"].shape) == 2:
            found.add(nodes[source])
    return found
