"""Time saved by sparse attention: by window, by truncated history, and by length of the history.

    python tests/benchmarks/techniques/windows.py [--lengths 50 200] [--rows 200] [--pairs 40]

SASRec in its published sizes, untrained, exported with one history and so many candidates a request. Each sparse graph
takes turns with the full one of its length in paired blocks, one request at a time, on one thread of ONNX Runtime:
service p50 of the full graph's, with its 95% interval, beside the graphs' multiply-adds.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from objectives.compression.attention import sparsify
from objectives.compression.export import Signature, to_onnx
from objectives.measure.deployment import quiet
from objectives.onnx_graph import multiply_adds, save_graph
from objectives.recommenders.families.sasrec import BASELINE, SASRec
from objectives.serving.pool import Pool
from spaces.techniques.attention import Attention
from spaces.techniques.placement import InstanceGroup, Placement
from tests.benchmarks.pairing import paired_service

ITEMS = 20_000
CALLS = 12
ONCE = frozenset(("history",))
SHARES = (0.05, 0.1, 0.2, 0.5)


def graph_of(model: SASRec, length: int, rows: int) -> ir.Model:
    example = {"history": torch.ones((rows, length), dtype=torch.int64), "item": torch.ones(rows, dtype=torch.int64)}
    return to_onnx(model, example, Signature(ONCE))


def requests(length: int, rows: int) -> list[dict[str, NDArray[np.int64]]]:
    random = np.random.default_rng(0)
    return [
        {"history": random.integers(1, ITEMS + 1, (1, length)), "item": random.integers(1, ITEMS + 1, rows)}
        for _ in range(CALLS)
    ]


def table(length: int, rows: int, pairs: int, folder: Path) -> Iterator[str]:
    torch.manual_seed(0)
    model = SASRec(ITEMS, replace(BASELINE, length=length))
    full = graph_of(model, length, rows)
    save_graph(full, folder / "full.onnx")
    asked, placement = requests(length, rows), Placement(InstanceGroup(threads=1))
    whole = multiply_adds(full, rows)
    yield f"\nhistory of {length}, {rows} candidates: {whole / 1e6:.2f} M multiply-adds"
    with Pool.open(folder / "full.onnx", placement) as theirs:
        for name in ("window", "history"):
            for size in sorted({max(1, round(share * length)) for share in SHARES}):
                sparse = graph_of(sparsify(model, Attention(**{name: size})), length, rows)  # type: ignore[arg-type]
                path = folder / f"{name}-{size}.onnx"
                save_graph(sparse, path)
                with Pool.open(path, placement) as ours:
                    ratio, (low, high) = paired_service(ours, theirs, asked, pairs)
                yield (
                    f"  {name:<8} {size:>4}   {ratio:.3f} [{low:.3f}, {high:.3f}] of the time, "
                    f"{multiply_adds(sparse, rows) / whole:.3f} of the multiply-adds"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[50, 200])
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=40)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, quiet():
        for length in options.lengths:
            for line in table(length, options.rows, options.pairs, Path(scratch)):
                print(line, flush=True)


if __name__ == "__main__":
    main()
