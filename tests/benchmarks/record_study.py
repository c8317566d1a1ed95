"""Record every candidate of a small study: cost, loss, and seconds of each stage; and benchmarks of some.

    python tests/benchmarks/record_study.py --home DIR [--groups 18] [--into DIR]

The study is `tests/recorded_study_tests/ml-100k.yaml`; it takes most of an hour on two cores. Every graph is
exported untrained and its service curve is measured in each placement; all weights are trained, exported in all
widths, and evaluated; the front by simulation, layer by layer, and as many candidates at random are benchmarked in
groups. What was measured is kept in the home, so that a second call goes on. Written: the table and the facts that
`tests/recorded_study_tests/table.py` reads.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np
import polars as pl

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from objectives.jobs.protocol import Request
from objectives.jobs.requests import ExportRequest, FitRequest
from objectives.measurement.metrics.quality import resolution
from objectives.records import Artifact, Quality
from objectives.serving.devices import describe
from search.cli.console import Console
from search.config.study_file import load
from search.explore.benchmark_groups import TOGETHER
from search.explore.cost_model import CostModel
from search.front import non_dominated
from search.home import Home
from search.session import MEASUREMENT, jobs_of, open_session, prepare
from search.workers.meter_jobs import MeterJobs, curve_parts
from search.workers.paired_comparison import PairedComparison
from search.workers.processes import Worker, Workers, call, open_workers
from spaces.candidate import Candidate
from spaces.domains import Scalar
from spaces.serialization import digest, from_plain, to_plain
from tests.recorded_study_tests.table import FACTS, FOLDER, SPACE, STUDY, TABLE, candidates_of

T = TypeVar("T")
# Sizes of the first groups, for the seconds of a benchmark by the size of its group; the others are as large as a
# search's.
_SIZES = (1, 2, 3)
# Threads of a builder, of which a search has one for each core; evaluations that are made again, from cached scores.
_THREADS, _REUSED = 1, 10


@dataclass(eq=False)
class Recorder:
    """Runs the stages of candidates and keeps their results in a file of lines, each by a key."""

    jobs: MeterJobs
    costs: CostModel
    workers: Workers
    file: Path

    def __post_init__(self) -> None:
        self.known: dict[str, Any] = {}
        for line in self.file.read_text().splitlines() if self.file.exists() else ():
            with contextlib.suppress(ValueError):  # a line that a kill left unfinished
                self.known |= json.loads(line)

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        """Return what is known by a key, or make it and keep it."""
        if key not in self.known:
            self.known[key] = make()
            with self.file.open("a") as lines:
                lines.write("\n" + json.dumps({key: self.known[key]}))
        return self.known[key]

    def timed(self, worker: Worker, request: Request[T]) -> tuple[T, float]:
        start = time.monotonic()
        found = call(worker, request, self.jobs.config.workers.fit_seconds, lambda line: None)
        return found, time.monotonic() - start

    def _export(self, candidate: Candidate) -> Any:
        request = ExportRequest(self.jobs.task, candidate, _THREADS)
        found, seconds = self.timed(self.workers.builder, request)
        return {"artifact": to_plain(found.artifact), "seconds": seconds}

    def artifact(self, candidate: Candidate) -> Artifact:
        """Return the model file of a candidate, exported on the first call."""
        known = self.once(f"export {candidate.variant_id}", lambda: self._export(candidate))
        return from_plain(Artifact, known["artifact"])

    def curve(self, candidate: Candidate) -> None:
        """Measure the service curve of a candidate, of untrained weights."""
        untrained = candidate.untrained
        artifact = self.artifact(untrained)

        def measure() -> float:
            (part,) = curve_parts(candidate.placement)
            found, seconds = self.timed(self.workers.meter, self.costs.request(artifact, candidate, part))
            if part in self.costs.missing(candidate):  # the baseline's is known from several
                self.costs.learn(candidate, part, found)
            return seconds

        self.once(f"curve {untrained.id}", measure)

    def quality(self, candidate: Candidate) -> None:
        """Train and export a candidate, and evaluate it."""
        weights = candidate.weights
        if weights.distillation is not None:
            request = FitRequest(self.jobs.task, weights, _THREADS)
            self.once(f"fit {weights.id}", lambda: self.timed(self.workers.builder, request)[1])
        artifact = self.artifact(candidate)

        def evaluate() -> Any:
            scores = self.jobs.score((artifact, candidate), "validation", threads=_THREADS)
            found, seconds = self.timed(self.workers.builder, self.jobs.evaluate(scores, 0.95))
            return {"quality": to_plain(found.quality), "seconds": seconds}

        self.once(f"evaluate {_scored(candidate)}", evaluate)
        if len([key for key in self.known if key.startswith("reuse ")]) < _REUSED:
            self.once(f"reuse {_scored(candidate)}", lambda: evaluate()["seconds"])

    def benchmark(self, number: int, group: Sequence[Candidate]) -> None:
        """Benchmark candidates together, as the search does."""
        sides = [(self.artifact(candidate), candidate) for candidate in group]
        names = [self.jobs.recording(f"group-{number}-{place}") for place in range(len(group))]

        def measure() -> Any:
            found, seconds = self.timed(self.workers.meter, self.jobs.time_group(sides, number, names))
            ratios = [
                None if one is None else (one.latency.p95_ratio, one.throughput.ratio) for one in found.benchmarks
            ]
            return {"seconds": seconds, "ratios": dict(zip([c.id for c in group], ratios, strict=True))}

        self.once(f"benchmark {digest([candidate.id for candidate in group])}", measure)

    def row(self, knobs: Mapping[str, Scalar], candidate: Candidate) -> dict[str, Any]:
        """Return a line of the table."""
        known, weights = self.known, candidate.weights
        evaluated = known[f"evaluate {_scored(candidate)}"]
        quality = from_plain(Quality, evaluated["quality"])
        groups = [value["ratios"] for key, value in known.items() if key.startswith("benchmark ")]
        measured = next((found for group in groups if (found := group.get(candidate.id)) is not None), (None, None))
        return {
            **knobs,
            **{f"simulated_{name}": value for name, value in to_plain(self.costs.ratios(candidate)).items()},
            "export_untrained_seconds": known[f"export {candidate.untrained.variant_id}"]["seconds"],
            "curve_seconds": known[f"curve {candidate.untrained.id}"],
            "fit_seconds": 0.0 if weights.distillation is None else known[f"fit {weights.id}"],
            "export_seconds": known[f"export {candidate.variant_id}"]["seconds"],
            "evaluate_seconds": evaluated["seconds"],
            "loss": quality.loss,
            "loss_low": quality.loss_interval[0],
            "loss_high": quality.loss_interval[1],
            "p95_ratio": measured[0],
            "throughput_ratio": measured[1],
        }

    def to_benchmark(self, candidates: Sequence[Candidate], count: int, max_loss: float) -> list[Candidate]:
        """Choose candidates: the baseline, half of them by layers of the simulated front, the rest at random."""
        table = []
        for candidate in candidates:
            ratios = self.costs.ratios(candidate)
            loss = self.known[f"evaluate {_scored(candidate)}"]["quality"]["loss"]
            table.append([ratios.p95_ratio or np.inf, -(ratios.throughput_ratio or 0.0), max(loss, 0.0)])
        points = np.array(table)
        left = [place for place in range(len(candidates)) if points[place, 2] <= max_loss]
        able, chosen = list(left), [place for place in left if candidates[place].is_baseline]
        while left and len(chosen) < count / 2:
            best = non_dominated(points[left])
            chosen += [place for place, kept in zip(left, best, strict=True) if kept and place not in chosen]
            left = [place for place, kept in zip(left, best, strict=True) if not kept]
        drawn = random.Random(0).sample(sorted(set(able) - set(chosen)), max(0, count - len(chosen)))
        return [candidates[place] for place in random.Random(1).sample([*chosen, *drawn], len(chosen) + len(drawn))]


def _scored(candidate: Candidate) -> str:
    """Return what the scores of a candidate depend on."""
    return f"{candidate.variant_id} {candidate.placement.instance_group.engine}"


def benchmark_seconds(known: Mapping[str, Any]) -> tuple[float, float]:
    """Return the seconds of a group without candidates, and of each candidate, by least squares."""
    groups = [value for key, value in known.items() if key.startswith("benchmark ")]
    each, base = np.polyfit([len(group["ratios"]) for group in groups], [group["seconds"] for group in groups], 1)
    return float(base), float(each)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--groups", type=int, default=18)
    parser.add_argument("--into", type=Path, default=FOLDER)
    options = parser.parse_args()
    config, home, console = load(str(STUDY), []), Home(options.home.resolve()), Console(False, False)
    session = open_session(config, home)
    with open_workers(home.logs(config.name)) as workers:
        prepared = prepare(session, workers.builder, console)
        jobs = jobs_of(config, home, prepared)
        everything = [*candidates_of(SPACE)]
        candidates = [candidate for _, candidate in everything]
        console.say(f"{len(candidates)} candidates, {len({c.variant_id for c in candidates})} model files")
        costs = CostModel(jobs, home.service_curves(f"{config.name}-{MEASUREMENT}"))
        costs.measure_baseline(PairedComparison(jobs, workers.builder, workers.meter, console))
        recorder = Recorder(jobs, costs, workers, home.root / f"recorded-{MEASUREMENT}.jsonl")
        console.say("weights, widths and losses")
        for candidate in {_scored(c): c for c in candidates}.values():
            recorder.quality(candidate)
        # At random, so that an hour in which the machine is slow is no group of candidates.
        for number, candidate in enumerate(random.Random(2).sample(candidates, len(candidates))):
            recorder.curve(candidate)
            if number % 100 == 0:
                console.say(f"costs: {number} of {len(candidates)}")
        chosen = recorder.to_benchmark(candidates, TOGETHER * options.groups, config.quality.max_loss)
        number = 0
        while chosen:
            size = _SIZES[number] if number < len(_SIZES) else TOGETHER
            console.say(f"benchmark {number}: {len(chosen)} candidates to go")
            recorder.benchmark(number, chosen[:size])
            chosen, number = chosen[size:], number + 1
        table = pl.DataFrame(
            [recorder.row(knobs, candidate) for knobs, candidate in everything], infer_schema_length=None
        )
        floats = [name for name, kind in table.schema.items() if kind == pl.Float64]
        table.with_columns(pl.col(floats).cast(pl.Float32)).write_parquet(options.into / TABLE.name, compression="zstd")
    qualities = [from_plain(Quality, q["quality"]) for key, q in recorder.known.items() if key.startswith("evaluate ")]
    facts = {
        "recorded": datetime.now(UTC).date().isoformat(),
        "machine": describe(),
        "resolution": median(found for quality in qualities if (found := resolution(quality)) > 0),
        "benchmark_seconds": benchmark_seconds(recorder.known),
        "reused_seconds": median(value for key, value in recorder.known.items() if key.startswith("reuse ")),
        "prepared": to_plain(replace(prepared, holdout="")),
    }
    (options.into / FACTS.name).write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
