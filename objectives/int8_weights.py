"""Int8 products that a CPU adds up exactly: by the bits of their weights, or by slower kernels.

An x86 CPU without VNNI multiplies uint8 activations by int8 weights with VPMADDUBSW, which adds two neighbouring
products and saturates their sum at 16 bits. Two products of 8-bit weights reach 2 * 255 * 127 = 64,770, above 32,767;
those of 7-bit weights reach 2 * 255 * 63 = 32,130. With VNNI or AMX, and on ARM, sums have 32 bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import onnxruntime

Int8WeightBits = Literal[7, 8]

# Entry of a model file's metadata: bits of the weights in its int8 products. A file without any has no entry.
WEIGHT_BITS = "int8_weight_bits"
# Entry of ONNX Runtime's session configuration that makes x86 kernels widen both operands first: exact for weights of 8
# bits everywhere, at about 1.25 times the time of the kernels that saturate, and twice that of VNNI's.
EXACT_SUMS = ("session.x64quantprecision", "1")


def largest_code(bits: Int8WeightBits) -> int:
    """Return the largest code of symmetric quantization; the smallest is its negative."""
    return (1 << (bits - 1)) - 1


def saturates(metadata: Mapping[str, str], cpu_bits: Int8WeightBits) -> bool:
    """Return True if int8 products of a model file could saturate on a CPU that is exact up to `cpu_bits`."""
    return int(metadata.get(WEIGHT_BITS, "0")) > cpu_bits


def open_exact(
    model: Path,
    options: onnxruntime.SessionOptions,
    providers: Sequence[tuple[str, dict[str, str]]],
    cpu_bits: Int8WeightBits,
) -> onnxruntime.InferenceSession:
    """Open a session of ONNX Runtime whose int8 products do not saturate.

    Where the model's weights have more bits than this CPU adds up exactly, `options` get slower kernels that do.

    Args:
        cpu_bits: bits of int8 weights up to which this CPU's own kernels are exact
    """
    import onnxruntime

    def load() -> onnxruntime.InferenceSession:
        # Without this, a failing provider is silently replaced by the CPU, even later in `run`.
        return onnxruntime.InferenceSession(str(model), options, providers=list(providers), enable_fallback=0)

    session = load()
    if saturates(session.get_modelmeta().custom_metadata_map, cpu_bits):
        options.add_session_config_entry(*EXACT_SUMS)
        del session  # before another writes to the files of its profile
        session = load()
    return session
