"""Detection of nodes that ONNX Runtime left to the CPU when another device was requested, from its profile of a run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

_CPU = "CPUExecutionProvider"
_KERNEL = "_kernel_time"
# The most numbers in a shape, or in a value computed from one.
_SHAPE_NUMBERS = 16


def nodes_left_to_cpu(profile: Path) -> list[str]:
    """Return the nodes that ran on the CPU and do more than compute shapes, in the order of the run.

    Each is given by its name and operator.

    The runtime keeps shapes on the CPU by design: a few integers each. A node with any other output there has its
    operands copied from the device and back in every request.
    """
    found = []
    for event in json.loads(profile.read_text()):
        name, args = event.get("name", ""), event.get("args", {})
        left = event.get("cat") == "Node" and name.endswith(_KERNEL) and args.get("provider") == _CPU
        if left and not all(_is_shape(value) for value in args.get("output_type_shape", [])):
            found.append(f"{name.removesuffix(_KERNEL)} ({args.get('op_name')})")
    return list(dict.fromkeys(found))


def _is_shape(value: Mapping[str, list[int]]) -> bool:
    """Return whether an output such as {"int64": [2]} is a shape: a few integers."""
    return all(
        kind.startswith(("int", "uint", "bool")) and len(sizes) <= 1 and math.prod(sizes) <= _SHAPE_NUMBERS
        for kind, sizes in value.items()
    )
