"""ONNX graphs as onnx-ir models: files, sessions for checks while building, shapes, constants and new nodes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray
from onnx_ir.passes.common import CheckerPass, RemoveUnusedNodesPass, ShapeInferencePass

from objectives.int8_weights import EXACT_SUMS
from objectives.records import WEIGHTS

# An ONNX file cannot exceed 2 GB, and code that reads one holds it several times.
LARGEST = 500_000_000
# Tensors of fewer bytes stay in the graph's own file.
SMALLEST = 1024
# Files are mapped at page boundaries.
_PAGE = 4096
# Domain of ONNX Runtime's own operators, and those of them that are written.
_ENGINE = "com.microsoft"
_OF_ENGINE = frozenset(("DynamicQuantizeLSTM", "GatherBlockQuantized", "MatMulNBits"))

Inputs = Sequence[ir.Value | None]
Attributes = Mapping[str, Any] | None


def load_graph(path: Path) -> ir.Model:
    """Load a saved graph; tensors in the file next to it are memory-mapped where they are used."""
    return ir.load(path.absolute())


def save_graph(model: ir.Model, path: Path) -> int:
    """Save a graph. The tensors of a large one go to the file WEIGHTS next to it, except for small constants.

    Tensors that are already in that file stay there, so that several graphs of a folder can share it.

    Returns:
        The bytes of the graph and its tensors.
    """
    tensors = list(model.graph.initializers.tensors())
    folder = path.absolute().parent
    shared = any(isinstance(tensor, ir.ExternalTensor) and Path(tensor.path).parent == folder for tensor in tensors)
    large = shared or is_large(model)
    if shared:
        ir.save(model, path)
    elif large:
        least = SMALLEST - 1
        ir.save(model, path, external_data=WEIGHTS, size_threshold_bytes=least, alignment=_PAGE, align_threshold=least)
    else:
        ir.save(ir.external_data.load_to_model(model.clone()), path)
    beside = sum(tensor.nbytes for tensor in tensors if tensor.nbytes >= SMALLEST) if large else 0
    return path.stat().st_size + beside


def is_large(model: ir.Model) -> bool:
    """Return whether a graph's tensors are too large for its own file."""
    return sum(tensor.nbytes for tensor in model.graph.initializers.tensors()) > LARGEST


def open_session(model: ir.Model, threads: int | None = None) -> Any:
    """Open ONNX Runtime's CPU provider on a graph, for checks while building; threads are its default where None.

    Sums of int8 products are exact on any CPU. A large graph is written to a temporary file, whose tensors are mapped.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    options.add_session_config_entry(*EXACT_SUMS)
    cpu = ["CPUExecutionProvider"]
    if is_large(model):  # tensors that are given in memory would be copied; those in a file are mapped
        with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            path = Path(folder, "model.onnx")
            save_graph(model, path)
            return onnxruntime.InferenceSession(path, options, providers=cpu)
    whole = ir.to_proto(ir.external_data.load_to_model(model.clone()))
    return onnxruntime.InferenceSession(whole.SerializeToString(), options, providers=cpu)


def finish(model: ir.Model) -> ir.Model:
    """Remove what no output needs from a graph, and run ONNX's full check.

    Raises:
        onnx.checker.ValidationError, onnx.shape_inference.InferenceError: the graph is not valid.
    """
    RemoveUnusedNodesPass()(model)
    return CheckerPass(full_check=True)(model).model


def once_inputs(model: ir.Model) -> frozenset[str]:
    """Return the inputs that are taken once a request: their first dimension is 1 where another's is not fixed."""
    first = {name_of(value): value.shape[0] if value.shape else 0 for value in model.graph.inputs}
    fixed = {name for name, size in first.items() if isinstance(size, int)}
    return frozenset(name for name in fixed if first[name] == 1 and len(fixed) < len(first))


def has_control_flow(model: ir.Model) -> bool:
    """Return whether a node contains a graph, which may read any value of the outer one."""
    return any(True for _ in model.graph.subgraphs())


def infer(
    model: ir.Model, rows: int | str | None = None, lengths: Mapping[str, Sequence[int]] | None = None
) -> ir.Model:
    """Copy a graph with all shapes inferred anew.

    `rows` replaces each input's first dimension that is not fixed, and `lengths` the dimensions after it, by the
    input's name.
    """
    bound = model.clone()
    forget_shapes(bound.graph)
    for value in bound.graph.inputs:
        sizes: list[Any] = list(value.shape or ())
        if rows is not None and sizes and not isinstance(sizes[0], int):
            sizes[0] = rows
        given = (lengths or {}).get(name_of(value), ())
        sizes[1 : 1 + len(given)] = given
        value.shape = value.shape and ir.Shape(sizes)
    ShapeInferencePass(check_type=False, strict_mode=False)(bound)
    return bound


def forget_shapes(graph: ir.Graph) -> None:
    """Remove the shapes of all computed values, and the types of those that are no outputs."""
    for node in graph:
        for value in node.outputs:
            value.shape = None
            if not value.is_graph_output():
                value.type = None


def multiply_adds(model: ir.Model, rows: int, lengths: Mapping[str, Sequence[int]] | None = None) -> int:
    """Count the multiply-adds of all matrix products and recurrent layers in a request of `rows` rows.

    Inputs taken once have one row.

    Args:
        lengths: sizes after the rows of inputs whose length differs between requests

    Raises:
        ValueError: the shape of a product cannot be inferred.
    """
    total = 0
    for node in infer(model, rows, lengths).graph:
        products: list[tuple[object, ...]] = []
        if node.op_type in ("Gemm", "MatMul", "MatMulInteger"):
            left, out = _sizes(node.inputs[0]), _sizes(node.outputs[0])
            products = [(*out, left[0] if node.attributes.get_int("transA", 0) else left[-1])]
        elif node.op_type in ("GRU", "LSTM", "RNN"):  # for each step and row, with the input and with the state
            products = [(*_sizes(node.inputs[0])[:-1], *_sizes(matrix)) for matrix in node.inputs[1:3]]
        for sizes in products:
            whole = [size for size in sizes if isinstance(size, int)]
            if len(whole) != len(sizes):
                raise ValueError(f"Products have known shapes, but got {sizes} in {node.name!r}.")
            total += prod(whole)
    return total


def _sizes(value: ir.Value | None) -> tuple[object, ...]:
    return (None,) if value is None or value.shape is None else tuple(value.shape)


def name_of(value: ir.Value | ir.Node) -> str:
    return value.name or ""


def operands(node: ir.Node) -> list[ir.Value]:
    """Return the node's inputs, without optional ones that are left out."""
    return [value for value in node.inputs if value is not None]


def shape_of(value: ir.Value | None) -> ir.Shape:
    """Return the shape of a value whose rank is known."""
    assert value is not None and value.shape is not None
    return value.shape


def array(value: ir.Value | None) -> NDArray[Any]:
    """Return the values of an initialiser; those in a file are memory-mapped, and read only where they are used."""
    assert value is not None and value.const_value is not None
    return value.const_value.numpy()


def integers(value: ir.Value | None) -> tuple[int, ...]:
    """Return an int64 constant of at most one axis: axes, a shape, starts or ends; () for any other value."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    if tensor is None or tensor.dtype != ir.DataType.INT64 or len(tensor.shape) > 1:
        return ()
    return tuple(int(number) for number in np.atleast_1d(tensor.numpy()))


def initializer(graph: ir.Graph, name: str, values: NDArray[Any] | np.generic) -> ir.Value:
    """Return the graph's initialiser of this name, made of the values if there is none."""
    if name not in graph.initializers:
        graph.initializers.add(ir.val(name, const_value=ir.tensor(np.asarray(values, order="C"), name=name)))
    return graph.initializers[name]


def with_constant(model: ir.Model, name: str, values: NDArray[Any]) -> ir.Model:
    """Copy a graph with a constant in place of an input, and without the shapes of computed values."""
    bound = model.clone()
    forget_shapes(bound.graph)
    value = next(value for value in bound.graph.inputs if value.name == name)
    bound.graph.inputs.remove(value)
    value.const_value, value.shape = ir.tensor(values, name=name), ir.Shape(values.shape)
    bound.graph.initializers[name] = value
    return bound


def with_row_for_each(model: ir.Model, names: Collection[str]) -> ir.Model:
    """Copy a graph whose named inputs, of one row, have as many rows as the others; no computed value has a shape."""
    opened = model.clone()
    forget_shapes(opened.graph)
    rows = next(shape_of(value)[0] for value in opened.graph.inputs if value.name not in names)
    for value in opened.graph.inputs:
        if value.name in names:
            value.shape = ir.Shape([rows, *shape_of(value)[1:]])
    return opened


def add_before(
    node: ir.Node, kind: str, inputs: Inputs, output: str, name: str | None = None, attributes: Attributes = None
) -> ir.Value:
    """Add a node before another, and return its output."""
    outputs, domain = [ir.val(output)], _imported(node, kind)
    made = ir.node(kind, inputs, attributes, domain=domain, outputs=outputs, name=name or f"node_{output}")
    node.prepend(made)
    return made.outputs[0]


def turn_into(node: ir.Node, kind: str, inputs: Inputs, name: str | None = None, attributes: Attributes = None) -> None:
    """Make a node another one that gives the same outputs."""
    node.op_type, node.domain, node.name = kind, _imported(node, kind), name or node.name
    node.resize_inputs(len(inputs))
    for place, value in enumerate(inputs):
        node.replace_input_with(place, value)
    node.attributes.clear()
    for attribute in ir.convenience.convert_attributes(attributes or {}):
        node.attributes.add(attribute)


def _imported(node: ir.Node, kind: str) -> str:
    """Return an operator's domain, which the node's graph imports."""
    if kind in _OF_ENGINE and node.graph is not None:
        node.graph.opset_imports.setdefault(_ENGINE, 1)
    return _ENGINE if kind in _OF_ENGINE else ""
