"""Walks through a traced program, from a value to its sources or to its readers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from torch.fx import Node

# Operators that move values, and change none but for its type.
MOVES = frozenset(
    (
        "view", "reshape", "_unsafe_view", "permute", "t", "transpose", "expand", "clone", "unsqueeze", "squeeze",
        "_to_copy", "slice", "select", "split_with_sizes", "getitem", "index_select", "alias", "detach", "cat",
    )
)  # fmt: skip
# Operators of these that may drop some values.
PARTS = frozenset(("slice", "select", "split_with_sizes", "getitem", "index_select"))


def operator_name(node: object) -> str:
    """Return the operator's name without namespace and overload; empty for a node that is no call."""
    if not isinstance(node, Node) or node.op != "call_function":
        return ""
    schema = getattr(node.target, "_schema", None)
    return schema.name.rpartition("::")[2] if schema is not None else getattr(node.target, "__name__", "")


def nearest(
    start: Iterable[object],
    wanted: Callable[[Node], bool],
    through: Callable[[Node], bool],
    onward: Callable[[Node], Iterable[Node]],
) -> Iterator[Node]:
    """Yield the first wanted nodes on each path onward, as far as it leads through nodes that may be passed."""
    stack, seen = list(start), set()
    while stack:
        node = stack.pop()
        if not isinstance(node, Node) or node in seen:
            continue
        seen.add(node)
        if wanted(node):
            yield node
        elif through(node):
            stack.extend(onward(node))
