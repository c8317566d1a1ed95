"""Request times of models compiled by AOTInductor, beside ONNX Runtime: the evidence for or against an engine.

    python tests/benchmarks/techniques/inductor.py [--rows 20 200 1000] [--rounds 400]

A DCN-V2 of the size of a baseline and three students, one thread each. AOTInductor writes C++ for a model with any
number of rows, which a C++ compiler of the machine makes a shared library of; a request is answered by that library,
called from Python. Ratios are as in graph_variants.py; compilation is told in seconds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from objectives.compression.module_edit import Positional
from objectives.recommenders.families import dcn_v2
from tests.benchmarks.techniques.graph_variants import FIELDS, Array, Run, exported, inputs, session, told_of

SIZES = {
    "baseline": dcn_v2.Sizes(16, 3, (256, 128)),
    "middle student": dcn_v2.Sizes(8, 2, (64, 32)),
    "small student": dcn_v2.Sizes(4, 1, (16,)),
    "smallest student": dcn_v2.Sizes(2, 1, (8,)),
}


def compiled(model: torch.nn.Module, folder: Path) -> Run:
    """Compile a model for any number of rows, and load the library."""
    rows = {name: torch.from_numpy(values) for name, values in inputs(8).items()}
    names = tuple(rows)
    whole = Positional(model.eval(), names, lambda of, given: of(**given))
    dynamic = {"values": tuple({0: torch.export.Dim.DYNAMIC} for _ in names)}
    program = torch.export.export(whole, tuple(rows.values()), dynamic_shapes=dynamic)
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(folder / "model.pt2"))
    library = torch._inductor.aoti_load_package(package)

    def run(given: Mapping[str, Array]) -> Array:
        with torch.inference_mode():
            scores: torch.Tensor = library(*(torch.from_numpy(given[name]) for name in names))
            return scores.numpy()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[20, 200, 1000])
    parser.add_argument("--rounds", type=int, default=400)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, sizes in SIZES.items():
        torch.manual_seed(0)
        model = dcn_v2.DCNV2(FIELDS, sizes)
        with TemporaryDirectory() as folder:
            before = time.monotonic()
            library = compiled(model, Path(folder))
            print(f"{name}: compiled in {time.monotonic() - before:.0f} s")
            runs = {"ONNX Runtime": session(exported(model), 1), "AOTInductor": library}
            told_of(name, runs, options.rows, 1, options.rounds)


if __name__ == "__main__":
    main()
