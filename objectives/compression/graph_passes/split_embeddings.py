"""Split of one graph into the lookups of embeddings and the dense rest, so that each can run on its own device."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

from objectives.onnx_graph import finish, has_control_flow, infer, integers, name_of, operands

_BLOCKS = ("com.microsoft", "GatherBlockQuantized")


class SplitError(ValueError):
    """The graph cannot be split at its tables; the message has the reason."""


def split_embeddings(model: ir.Model) -> tuple[ir.Model, ir.Model]:
    """Split a graph into (tables, dense): ids to embeddings in fp32, and these with any other inputs to scores.

    An embedding is the result of a lookup in a constant table, widened where the table is stored in fp16, in int8 rows
    with scales, or in blocks (com.microsoft's GatherBlockQuantized, and a Slice that removes padding columns); it has
    the same name in both. An input that is read for more than lookups is an input of both.

    Raises:
        SplitError: there are no lookups, nothing but lookups, ids computed from floats, or control flow.
    """
    if has_control_flow(model):
        raise SplitError("A graph without branches and loops can be cut, but got one with them.")
    tables, dense = model.clone(), model.clone()
    computed, embeddings = ir.convenience.create_value_mapping(dense.graph), []
    for name, shape in _Lookups(infer(model).graph).embeddings().items():
        embeddings.append(ir.val(name, ir.DataType.FLOAT, shape))
        computed[name].replace_all_uses_with(embeddings[-1], replace_graph_outputs=True)
    _take(dense, embeddings)
    read = [value for value in embeddings if value.uses()]
    if not read:
        raise SplitError("Scores are computed from lookups of ids in constant tables, but got a graph where none are.")
    computed = ir.convenience.create_value_mapping(tables.graph)
    for value in read:
        made = computed[name_of(value)]
        made.type, made.shape = value.type, value.shape
    tables.graph.outputs[:] = [computed[name_of(value)] for value in read]
    tables.metadata_props.clear()  # the entries concern products, and lookups have none
    _take(tables)
    return finish(tables), finish(dense)


def _take(part: ir.Model, given: Sequence[ir.Value] = ()) -> None:
    """Let a part of a graph take no other inputs, and of the given values and its own those that it reads."""
    RemoveUnusedNodesPass()(part)
    RemoveUnusedOpsetsPass()(part)
    part.graph.inputs[:] = [value for value in (*given, *part.graph.inputs) if value.uses()]


class _Lookups:
    """Lookups of a graph, each with the decoding of its table's width."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._constant = set(graph.initializers.values())
        for node in graph:
            if self._constant.issuperset(operands(node)):
                self._constant.update(node.outputs)

    def embeddings(self) -> dict[str, ir.Shape]:
        """Return the shapes of the values that lookups pass to the rest, in the order of the nodes."""
        found = {}
        for node in self._graph:
            embedding = self._embedding(node) if self._is_lookup(node) else None
            if embedding is not None:
                self._check_ids(node)
                found[name_of(embedding)] = self._shape(node, embedding)
        return found

    def _shape(self, lookup: ir.Node, embedding: ir.Value) -> ir.Shape:
        table, ids, *_ = operands(lookup)
        assert table.shape is not None and ids.shape is not None
        sizes = list(table.shape[1:])
        if lookup.op_type != "Gather":  # onnx infers nothing of it: a byte holds two codes of 4 bits, or four of 2
            packed = 8 // lookup.attributes.get_int("bits", 4) if table.dtype == ir.DataType.UINT8 else 1
            columns = packed * prod(table.shape.numpy()[1:])
            trim = embedding.producer()
            sizes = [columns if trim is lookup or trim is None else min(columns, *integers(trim.inputs[2]))]
        return ir.Shape([*ids.shape, *sizes])

    def _is_lookup(self, node: ir.Node | None) -> bool:
        """Return whether a node looks up variable ids along the first axis of a constant table."""
        if node is None or (node.domain, node.op_type) not in (("", "Gather"), _BLOCKS):
            return False
        along = node.attributes.get_int("axis" if node.op_type == "Gather" else "gather_axis", 0)
        return along == 0 and node.inputs[0] in self._constant and node.inputs[1] not in self._constant

    def _embedding(self, lookup: ir.Node) -> ir.Value | None:
        """Return the decoded value of a lookup; None for a row's scale, and for numbers that are no embeddings."""
        value, (table, *_) = lookup.outputs[0], operands(lookup)
        if lookup.op_type != "Gather":
            trim = _only_reader(value, "Slice")
            ends = () if trim is None else tuple(integers(read) for read in trim.inputs[1:])
            return trim.outputs[0] if trim and len(ends) == 3 and ends[::2] == ((0,), (-1,)) and ends[1] else value
        if table.dtype == ir.DataType.FLOAT:
            return None if self._is_scale(lookup) else value
        dequantized = _only_reader(value, "DequantizeLinear")
        if dequantized is not None and self._looks_up(dequantized.inputs[1], lookup):
            return dequantized.outputs[0]
        widened = _only_reader(value, "Cast")
        if widened is None or widened.outputs[0].dtype != ir.DataType.FLOAT:
            return None
        value = widened.outputs[0]
        scaled = _only_reader(value, "Mul") if _is_whole(table) else None
        if scaled is not None and all(self._looks_up(read, lookup) for read in scaled.inputs):
            value = scaled.outputs[0]
        return value

    def _is_scale(self, lookup: ir.Node) -> bool:
        """Return whether the lookup scales integers of the same ids: in a DequantizeLinear, or, widened, in a Mul."""
        value = lookup.outputs[0]
        if (node := _only_reader(value, "DequantizeLinear")) is not None:
            return node.inputs[1] is value and self._looks_up(node.inputs[0], lookup)
        if (column := _only_reader(value, "Unsqueeze")) is not None:
            value = column.outputs[0]
        node = _only_reader(value, "Mul")
        others = [read.producer() for read in operands(node) if read is not value] if node else []
        codes = [cast.inputs[0] for cast in others if cast is not None and cast.op_type == "Cast"]
        return any(_is_whole(code) and self._looks_up(code, lookup) for code in codes)

    def _looks_up(self, value: ir.Value | None, other: ir.Node) -> bool:
        """Return whether a value is another lookup by the same ids: directly, widened, or as a column."""
        node = None if value is None else value.producer()
        if node is not None and node.op_type in ("Cast", "Unsqueeze"):
            return self._looks_up(node.inputs[0], other)
        return node is not None and self._is_lookup(node) and node.inputs[1] is other.inputs[1]

    def _check_ids(self, lookup: ir.Node) -> None:
        table, ids, *_ = operands(lookup)
        path, floats = [ids], set()
        for value in path:
            if not _is_whole(value):
                floats.add(name_of(value))
            if (node := value.producer()) is not None:
                path += [read for read in operands(node) if read not in self._constant and read not in path]
        if floats:
            raise SplitError(
                f"Ids are whole numbers throughout, but {ids.name!r} of {table.name!r} come from {sorted(floats)}."
            )


def _only_reader(value: ir.Value, kind: str) -> ir.Node | None:
    readers = value.consumers()
    return readers[0] if len(readers) == 1 and readers[0].op_type == kind else None


def _is_whole(value: ir.Value | None) -> bool:
    """Return whether a value holds whole numbers or truth values."""
    return value is not None and value.dtype is not None and (value.dtype.is_integer() or value.dtype.name == "BOOL")
