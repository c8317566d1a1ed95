"""Bundles of the toy's interface that fail in their own way, but not on their example."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from objectives.serving.bundle import write_bundle
from spaces.candidate import Candidate
from tests.serve_tests.bundles import EXAMPLE_ROWS, INPUTS, ITEMS, PRICES, _save, draw_request

# Items whose lookup fails in `write_failing`.
UNKNOWN = 10


def write_failing(folder: Path) -> Path:
    """Write a bundle that cannot look up the last `UNKNOWN` items, which its manifest says it has."""
    example = draw_request(EXAMPLE_ROWS)
    example["item"] = example["item"] % (ITEMS - UNKNOWN)
    nodes = [
        helper.make_node("Gather", ["table", "item"], ["found"]),
        *_sum_of("found"),
    ]
    return _write(folder, nodes, {"table": np.arange(ITEMS - UNKNOWN, dtype=np.float32)}, example)


def write_not_finite(folder: Path) -> Path:
    """Write a bundle whose scores are NaN where the first price is negative."""
    example = draw_request(EXAMPLE_ROWS)
    example["price"] = np.abs(example["price"])
    nodes = [
        helper.make_node("Gather", ["price", "first"], ["found"], axis=1),
        helper.make_node("Squeeze", ["found", "axis"], ["flat"]),
        helper.make_node("Sqrt", ["flat"], ["root"]),
        *_sum_of("root"),
    ]
    return _write(folder, nodes, {"first": np.array([0]), "axis": np.array([1])}, example)


def _sum_of(name: str) -> list[onnx.NodeProto]:
    """The nodes that add what the other inputs give, so that every input is used."""
    return [
        helper.make_node("Cast", ["user"], ["u"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["item"], ["i"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["fresh"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["price", "ones"], ["p"]),
        helper.make_node("Sum", [name, "u", "i", "f", "p"], ["scores"]),
    ]


def _write(
    folder: Path, nodes: list[onnx.NodeProto], arrays: dict[str, np.ndarray], example: dict[str, np.ndarray]
) -> Path:
    types = {
        "user": (TensorProto.INT64, ["rows"]),
        "item": (TensorProto.INT64, ["rows"]),
        "price": (TensorProto.FLOAT, ["rows", PRICES]),
        "fresh": (TensorProto.BOOL, ["rows"]),
    }
    model = _save(folder, nodes, types, {**arrays, "ones": np.ones(PRICES, np.float32)})
    write_bundle(folder, "toy", model, Candidate(), {}, INPUTS, "# toy\n", example)
    return folder
