"""Quantization: a graph rewritten to narrower weights, and the widths that are read back from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import onnx_ir as ir

from objectives.arrays import Arrays
from objectives.compression.export import PREFIX
from objectives.compression.graph_passes.exported import hold_turned
from objectives.compression.quantization.calibration import Range, value_ranges
from objectives.compression.quantization.embeddings import block_rows, half_rows, int8_rows
from objectives.compression.quantization.products import block_product, dynamic_int8, dynamic_lstm, half_product
from objectives.compression.quantization.static import static_int8
from objectives.compression.quantization.weights import WidthError, prefixes, read_weight_bits, read_widths, weights
from objectives.compression.quantization.weights import products as products_of
from objectives.int8_weights import WEIGHT_BITS, Int8WeightBits
from objectives.onnx_graph import finish, name_of, operands
from spaces.model_structure import ModelStructure
from spaces.techniques.quantization import STATIC, Precision

__all__ = ["Range", "WidthError", "quantize", "read_weight_bits", "read_widths"]

_Pass = Callable[[ir.Graph, ir.Value], None]


def quantize(
    model: ir.Model,
    precision: Precision,
    structure: ModelStructure,
    calibration: Arrays,
    ranges: Mapping[str, Range] | None = None,
    weight_bits: Int8WeightBits = 8,
) -> ir.Model:
    """Copy an fp32 graph with the weights of each group in its width; a table that is named by itself has its own.

    All matrices under the names of a group's modules have its width: both factors of a factorised one, both halves of
    one that `compute_once` split, all parts of a compressed table, its projections too.

    Args:
        calibration: inputs of some train rows, for the missing ranges of static int8; where the graph takes the user's
            inputs once, the rows of one user are run together
        ranges: (low, high) of a module's input learned in quantization-aware training, by the module's dotted name
        weight_bits: bits of the weights in int8 products, as the serving CPU needs them; the actual bits are written to
            the graph's metadata

    Raises:
        WidthError: the widths read back from the result differ from the requested ones.
        ValueError: an unknown group or module.
    """
    asked = dict(precision.widths)
    # The structure is the baseline's: a smaller sibling has fewer layers of the same names.
    wide = dict.fromkeys(read_widths(model, structure, asked), "fp32")
    expected = wide | {name: width for name, width in asked.items() if width != "fp32"}
    result, stored = model.clone(), structure.stored(asked)
    narrow = prefixes([module for name, width in expected.items() if width != "fp32" for module in stored[name]])
    for matrix in [value for name, value in result.graph.initializers.items() if name.startswith(narrow)]:
        hold_turned(result.graph, matrix)
    narrowed = {weight: width for name, width in expected.items() for weight in weights(result.graph, stored[name])}
    # Static first: its ranges refer to the exported graph; the other passes rewrite single nodes.
    static = [weight for weight, width in narrowed.items() if width == STATIC]
    _round_products(result, static, precision, calibration, ranges or {}, weight_bits)
    passes = _passes(weight_bits)
    for weight, width in narrowed.items():
        for rewrite in passes.get(width, ()):
            rewrite(result.graph, weight)
    finish(result)
    read = read_widths(result, structure, asked)
    wrong = {name: width for name, width in expected.items() if width != read.get(name)}
    if wrong:
        found = (f"{g}: asked {w}, but the graph holds {read.get(g, 'none of its weights')}" for g, w in wrong.items())
        raise WidthError("; ".join(found) + ".")
    bits = read_weight_bits(result)
    if bits is not None:
        if bits > weight_bits:
            raise WidthError(f"int8 products: asked for weights of {weight_bits} bits, but the graph holds {bits}.")
        result.metadata_props[WEIGHT_BITS] = str(bits)
    return result


def _passes(weight_bits: Int8WeightBits) -> dict[str, tuple[_Pass, ...]]:
    """Return the passes of each width, which rewrite the lookups of a weight, or its products."""
    return {
        "int8-dynamic": (partial(dynamic_int8, bits=weight_bits),),
        "int8-lstm": (partial(dynamic_lstm, bits=weight_bits),),
        "fp16": (half_rows, half_product),
        "int8": (int8_rows, partial(block_product, bits=8)),
        "int4": (partial(block_rows, bits=4), partial(block_product, bits=4)),
        "int4-dynamic": (partial(block_product, bits=4, rounded=True),),
        "int2": (partial(block_rows, bits=2), partial(block_product, bits=2)),
    }


def _round_products(
    model: ir.Model,
    narrowed: Sequence[ir.Value],
    precision: Precision,
    calibration: Arrays,
    learned: Mapping[str, Range],
    weight_bits: Int8WeightBits,
) -> None:
    """Quantize products by the learned ranges, and by those of the calibration rows for the rest."""
    found = {node for weight in narrowed for node in products_of(weight)}
    weight_names = {node: name_of(operands(node)[1]) for node in model.graph if node in found}
    modules = {node: name.removeprefix(PREFIX).rpartition(".weight")[0] for node, name in weight_names.items()}
    unmet = sorted(set(learned) - set(modules.values()))
    if unmet:
        raise ValueError(f"Ranges are of modules that are held in {STATIC}, but got some of {unmet}.")
    ranges = {product: learned[module] for product, module in modules.items() if module in learned}
    inputs = {product: name_of(operands(product)[0]) for product in modules if product not in ranges}
    if inputs:
        seen = value_ranges(model, list(inputs.values()), calibration, precision.calibration)
        ranges |= {product: seen[x] for product, x in inputs.items()}
    static_int8(model, ranges, weight_bits)
