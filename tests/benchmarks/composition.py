"""Composition of techniques at the published sizes: candidates at random, all the way to fifty timed requests.

    python tests/benchmarks/composition.py [--candidates 200] [--seed 0] [--family dcn-v2 ...]

Every technique is in the space, on every engine that is here. Models are hardly trained: what is looked at is whether a
candidate can be built and served, whether its weights, graph and scores show each technique that was asked and no
other, how long each stage takes, and how often each technique was drawn; a refusal says that a technique would have
left its group as it is. The times are of one run each, and decide nothing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from objectives.held_out_rows import read_requests
from objectives.measure.deployment import quiet, warm_up
from objectives.measurement.load_generator import closed_loop
from objectives.serving.devices import int8_weight_bits
from objectives.serving.pool import Pool
from objectives.task import Task
from spaces.ablations import techniques
from spaces.candidate import Candidate
from tests.compression_tests.composed import check
from tests.compression_tests.composing import COLUMNS, Shop, brief_training, told, walk, write_table

FAMILIES = ("dcn-v2", "dlrm", "sasrec")
REQUESTS = 50
STAGES = ("fit", "export", "serve", "time")
SEQUENCES = {"rows": 40_000, "users": 1000, "items": 3000, "order": 0.8, "zipf": 0.5}


@dataclass
class Tally:
    """Outcomes of the candidates of one family."""

    family: str
    drawn: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    failed: dict[str, str] = field(default_factory=dict)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    service_ms: list[float] = field(default_factory=list)

    def add(self, shop: Shop, candidate: Candidate) -> None:
        self.drawn.update({technique.name for technique in techniques(candidate)})
        try:
            done = walk(shop, candidate)
        except Exception as error:  # whatever it is, it is what this program is to find
            self.failed[told(candidate)] = f"{type(error).__name__}: {' '.join(str(error).split())}"
            return
        for stage, seconds in done.seconds.items():
            self.seconds[stage] += seconds
        if done.artifact is None:
            self.refused[str(done.refusal)] += 1
            return
        requests = read_requests(Path(shop.prepared.holdout))[:REQUESTS]
        with Pool.open(shop.model(done.artifact), candidate.placement, candidate.precision.compute) as pool:
            warm_up(pool.submit, requests, candidate.placement)
            taken = closed_loop(pool.submit, requests)
        self.seconds["time"] += float(taken.sum()) / 1e3
        try:
            check(shop, done)
        except AssertionError as error:
            self.failed[told(candidate)] = f"not what was asked: {' '.join(str(error).split())}"
            return
        self.service_ms.append(float(np.median(taken)))

    def lines(self) -> Iterator[str]:
        built, refused = len(self.service_ms), self.refused.total()
        yield f"\n{self.family}: {built} built, {refused} refused, {len(self.failed)} failed"
        yield "  seconds    " + ", ".join(f"{stage} {self.seconds[stage]:.1f}" for stage in STAGES)
        if self.service_ms:
            low, middle, high = np.percentile(self.service_ms, (0, 50, 100))
            yield f"  service    {middle:.3f} ms, from {low:.3f} to {high:.3f}"
        yield "  drawn      " + ", ".join(f"{name} {count}" for name, count in self.drawn.most_common())
        yield from (f"  refused    {count} x {reason}" for reason, count in self.refused.most_common())
        yield from (f"  failed     {reason}\n             {which}" for which, reason in self.failed.items())


def shop_of(family: str, home: Path) -> Shop:
    """Return a shop in the published sizes, on a synthetic log with numbers and sets, or with an order to learn."""
    source: dict[str, Any] = {"source": "synthetic", "synthetic": SEQUENCES}
    if family != "sasrec":
        write_table(home / "clicks.parquet", rows=20_000, users=2000, items=3000)
        source = {"source": f"table:{home / 'clicks.parquet'}", "columns": COLUMNS}
    task = Task(
        str(home), family, metric="auc", rows_median=200, rows_sigma=0.6, rows_max=1000, seed=0,
        int8_weight_bits=int8_weight_bits(), **source,
    )  # fmt: skip
    return Shop.open(
        task,
        {
            "distillation": {"epochs": 1, "feature_weight": [0, 0.5]},
            "placement": {"embedding_device": ["same", "onnxruntime", "openvino"]},
        },
    )


def run(families: Sequence[str], candidates: int, seed: int) -> Iterator[Tally]:
    with tempfile.TemporaryDirectory() as home, brief_training(), quiet():
        for family in families:
            shop, tally = shop_of(family, Path(home)), Tally(family)
            for candidate in shop.candidates(candidates, seed):
                tally.add(shop, candidate)
            yield tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=200, help="of each family")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--family", nargs="+", choices=FAMILIES, default=FAMILIES)
    given = parser.parse_args()
    failed = 0
    for tally in run(given.family, given.candidates, given.seed):
        print(*tally.lines(), sep="\n", flush=True)
        failed += len(tally.failed)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
