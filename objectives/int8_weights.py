"""How many bits the weights of int8 products may have, so that a CPU adds the products up exactly.

An x86 CPU without VNNI multiplies uint8 activations by int8 weights with VPMADDUBSW, which adds two neighbouring
products and saturates their sum at 16 bits. Two products of 8-bit weights reach 2 * 255 * 127 = 64,770, above 32,767;
those of 7-bit weights reach 2 * 255 * 63 = 32,130. With VNNI or AMX, and on ARM, sums have 32 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Int8WeightBits = Literal[7, 8]

# An entry of a model file's metadata: bits of the weights in its int8 products. A file without any has no entry.
WEIGHT_BITS = "int8_weight_bits"
# The entry of ONNX Runtime's session configuration that makes x86 kernels widen both operands first: exact for weights
# of 8 bits everywhere, at about 1.25 times the time of the kernels that saturate, and twice that of VNNI's.
EXACT_SUMS = ("session.x64quantprecision", "1")


def largest_code(bits: Int8WeightBits) -> int:
    """Codes are symmetric: from its negative to this one."""
    return (1 << (bits - 1)) - 1


def saturates(metadata: Mapping[str, str], cpu_bits: Int8WeightBits) -> bool:
    """Whether int8 products of a model file could saturate on a CPU that is exact up to `cpu_bits`."""
    return int(metadata.get(WEIGHT_BITS, "0")) > cpu_bits
