"""Split of one graph into the lookups of embeddings and the dense rest, so that each can run on its own device."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import NodeProto, TensorProto, ValueInfoProto, helper

from objectives.compression.graph_passes.external_data import check_graph
from objectives.compression.graph_passes.graph_reading import (
    attribute,
    has_control_flow,
    infer,
    initializers,
    needed,
    shapes,
)

_SIZES = (8, 16, 32, 64)
_WHOLE = {TensorProto.BOOL, *(TensorProto.DataType.Value(f"{kind}{n}") for kind in ("INT", "UINT") for n in _SIZES)}
_HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_BLOCKS = ("com.microsoft", "GatherBlockQuantized")


class SplitError(ValueError):
    """The graph cannot be split at its tables; the message has the reason."""


def split_embeddings(graph: onnx.ModelProto) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Split a graph into (tables, dense): ids to embeddings in fp32, and these with any other inputs to scores.

    An embedding is the result of a lookup in a constant table, widened where the table is stored in fp16, in int8 rows
    with scales, or in blocks (com.microsoft's GatherBlockQuantized, and a Slice that removes padding columns); it has
    the same name in both. An input that is read for more than lookups is an input of both.

    Raises:
        SplitError: there are no lookups, nothing but lookups, ids computed from floats, or control flow.
    """
    if has_control_flow(graph):
        raise SplitError("A graph without branches and loops can be cut, but got one with them.")
    found = _Lookups(graph).embeddings()
    dense = needed(graph.graph.node, [value.name for value in graph.graph.output], frozenset(found))
    read = {name for node in dense for name in node.input}
    embeddings = [value for name, value in found.items() if name in read]
    if not embeddings:
        raise SplitError("Scores are computed from lookups of ids in constant tables, but got a graph where none are.")
    tables = needed(graph.graph.node, [value.name for value in embeddings])
    rest = _part(graph, dense, embeddings, graph.graph.output)
    rest.metadata_props.extend(graph.metadata_props)  # the entries concern products, and lookups have none
    return _part(graph, tables, [], embeddings), rest


def _part(
    graph: onnx.ModelProto,
    nodes: Sequence[NodeProto],
    given: Sequence[ValueInfoProto],
    outputs: Sequence[ValueInfoProto],
) -> onnx.ModelProto:
    """Make a model of some nodes, with the inputs and initialisers that they read."""
    read = {name for node in nodes for name in node.input}
    inputs = [*given, *(value for value in graph.graph.input if value.name in read)]
    tensors = [tensor for tensor in graph.graph.initializer if tensor.name in read]
    made = helper.make_model(
        helper.make_graph(nodes, graph.graph.name, inputs, outputs, tensors),
        opset_imports=[o for o in graph.opset_import if o.domain in {"", *(node.domain for node in nodes)}],
        functions=graph.functions,
        ir_version=graph.ir_version,
    )
    check_graph(made)
    return made


class _Lookups:
    """Lookups of a graph, each with the decoding of its table's width."""

    def __init__(self, graph: onnx.ModelProto) -> None:
        inferred = infer(_standing_in(graph))
        self._nodes = list(graph.graph.node)
        self._shapes = shapes(inferred)
        values = (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output)
        self._types = {value.name: value.type.tensor_type.elem_type for value in values}
        self._types |= {tensor.name: tensor.data_type for tensor in graph.graph.initializer}
        self._made_by = {name: node for node in self._nodes for name in node.output}
        self._constant = set(initializers(graph))
        for node in self._nodes:
            if set(node.input) <= self._constant:
                self._constant |= set(node.output)

    def embeddings(self) -> dict[str, ValueInfoProto]:
        """Return the values that lookups pass to the rest, in the order of the nodes."""
        found: dict[str, ValueInfoProto] = {}
        for node in self._nodes:
            embedding = self._embedding(node) if self._is_lookup(node) else None
            if embedding is not None:
                self._check_ids(node)
                shape = self._shapes[embedding]
                found[embedding] = helper.make_tensor_value_info(embedding, TensorProto.FLOAT, shape)
        return found

    def _is_lookup(self, node: NodeProto | None) -> bool:
        """Return whether a node looks up variable ids along the first axis of a constant table."""
        if node is None or (node.domain, node.op_type) not in (("", "Gather"), _BLOCKS):
            return False
        along = attribute(node, "axis" if node.op_type == "Gather" else "gather_axis", 0)
        return along == 0 and node.input[0] in self._constant and node.input[1] not in self._constant

    def _embedding(self, lookup: NodeProto) -> str | None:
        """Return the decoded value of a lookup; None for a row's scale, and for a table of numbers that are no
        embeddings.
        """
        value: str = lookup.output[0]
        stored = self._types[lookup.input[0]]
        if lookup.op_type != "Gather":
            whole = self._only_reader(value, "Slice")
            return value if whole is None or not set(whole.input[1:]) <= self._constant else whole.output[0]
        if stored == TensorProto.FLOAT:
            return None if self._is_scale(lookup) else value
        dequantised = self._only_reader(value, "DequantizeLinear")
        if dequantised is not None and self._looks_up(dequantised.input[1], lookup):
            return str(dequantised.output[0])
        widened = self._only_reader(value, "Cast")
        if widened is None or self._types[widened.output[0]] != TensorProto.FLOAT:
            return None
        value = widened.output[0]
        scaled = None if stored in _HALF else self._only_reader(value, "Mul")
        if scaled is not None and all(self._looks_up(name, lookup) for name in scaled.input):
            value = scaled.output[0]
        return value

    def _is_scale(self, lookup: NodeProto) -> bool:
        """Return whether the lookup scales the integers of the same ids: in a DequantizeLinear only, or, widened, in a
        Mul.
        """
        value = lookup.output[0]
        if (node := self._only_reader(value, "DequantizeLinear")) is not None:
            return node.input[1] == value and self._looks_up(node.input[0], lookup)
        if (column := self._only_reader(value, "Unsqueeze")) is not None:
            value = column.output[0]
        node = self._only_reader(value, "Mul")
        others = [self._made_by.get(name) for name in node.input if name != value] if node else []
        codes = [
            n.input[0] for n in others if n is not None and n.op_type == "Cast" and self._types[n.input[0]] in _WHOLE
        ]
        return any(self._looks_up(name, lookup) for name in codes)

    def _looks_up(self, value: str, other: NodeProto) -> bool:
        """Return whether a value is another lookup by the same ids: directly, widened, or as a column."""
        node = self._made_by.get(value)
        if node is not None and node.op_type in ("Cast", "Unsqueeze"):
            node = self._made_by.get(node.input[0])
        return node is not None and self._is_lookup(node) and node.input[1] == other.input[1]

    def _only_reader(self, value: str, kind: str) -> NodeProto | None:
        readers = [node for node in self._nodes if value in node.input]
        return readers[0] if len(readers) == 1 and readers[0].op_type == kind else None

    def _check_ids(self, lookup: NodeProto) -> None:
        ids = lookup.input[1]
        path = needed(self._nodes, [ids])
        values = {ids, *(name for node in path for name in node.input if name)} - self._constant
        floats = sorted(name for name in values if self._types.get(name) not in _WHOLE)
        if floats:
            raise SplitError(
                f"Ids are whole numbers throughout, but {ids!r} of {lookup.input[0]!r} come from {floats}."
            )


def _standing_in(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a graph with lookups in blocks replaced by those of wide tables for shape inference, since onnx lacks their
    schema.

    A byte holds two codes of 4 bits, or four of 2.
    """
    made = onnx.ModelProto()
    made.CopyFrom(graph)
    tables = initializers(graph)
    for node in made.graph.node:
        if (node.domain, node.op_type) == _BLOCKS and node.input[0] in tables:
            table = tables[node.input[0]]
            a_byte = 8 // attribute(node, "bits", 4) if table.data_type == TensorProto.UINT8 else 1
            *rows, columns = table.dims
            wide = helper.make_tensor_value_info(f"{node.output[0]}.wide", TensorProto.FLOAT, [*rows, columns * a_byte])
            made.graph.input.append(wide)
            along = attribute(node, "gather_axis", 0)
            lookup = helper.make_node("Gather", [wide.name, node.input[1]], node.output, node.name, axis=along)
            node.CopyFrom(lookup)
    return made
