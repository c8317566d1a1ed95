"""A cascade: a distilled student in int8 scores all rows of a request, and the baseline scores the best k of them anew.

    python tests/benchmarks/techniques/cascade.py STUDY.yaml --home DIR [--passes 5] [--rounds 60]

Beside it stand what a study has without it: the students alone, and the baseline's own weights in int8. Time is CPU
time on one thread of ONNX Runtime, in a new order each round, so that a busy machine disturbs it little; the ratio
is of medians, with a bootstrap interval. Quality is told in three ways, since a cascade has no one scale of scores:

- AUC over all held-out rows: the baseline's score for the rows that it sees, the student's for the others, as they are;
- AUC by user (gauc): within a user, the rows that the baseline sees stand above the others;
- of the baseline's first ten in a whole request, how many the cascade has among its first ten.

A user's held-out rows are few, so the first two are told by the share k / rows, never of fewer rows than one.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from objectives.build.evaluate import run_blocks
from objectives.held_out_rows import HeldOut, read_held_out
from objectives.measurement.metrics.quality import paired_quality
from objectives.recommenders.load import open_recommender
from objectives.records import Prepared, Quality
from objectives.serving.devices import cores_allowed, describe
from objectives.serving.engines import open_replica
from objectives.serving.split_engine import Engine
from objectives.task import Task
from search.config.defaults import space_for
from search.config.sections import StudyConfig
from search.config.study_file import load
from search.home import Home
from search.session import task_of
from spaces.domains import Choice
from spaces.techniques.architecture import Architecture
from spaces.techniques.distillation import Distillation
from spaces.techniques.placement import InstanceGroup
from spaces.techniques.quantization import Precision
from spaces.weights import Weights
from tests.build_tests.staged import Form, export, fit, prepare

# Rows of a request -> how many of them the baseline scores anew.
DEPTHS: Mapping[int, tuple[int, ...]] = {200: (10, 20, 50), 1000: (10, 20, 50, 100)}
FIRST = 10
_REQUESTS = 40
_WARM = 5

Request = Mapping[str, NDArray[Any]]
Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Cascade:
    """An engine of two, whose scores put the student's best `depth` rows in the baseline's order.

    These rows stand above all others, which keep the student's order.
    """

    student: Engine
    baseline: Engine
    depth: int

    def run(self, inputs: Request) -> Scores:
        scores = self.student.run(inputs)
        if len(scores) <= self.depth:
            return self.baseline.run(inputs)
        best = np.argpartition(-scores, self.depth)[: self.depth]
        return lifted(scores, best, self.baseline.run({name: values[best] for name, values in inputs.items()}))


def lifted(scores: Scores, best: NDArray[np.int64], anew: Scores) -> Scores:
    """The new scores of the best rows, moved above those of all others."""
    merged, rest = scores.copy(), np.ones(len(scores), np.bool_)
    rest[best] = False
    highest = float(scores[rest].max()) if rest.any() else -np.inf
    merged[best] = anew + max(0.0, highest - float(anew.min()) + 1e-3)
    return merged


# -- quality


def merged(
    student: NDArray[Any], baseline: NDArray[Any], groups: NDArray[np.int64], share: float
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Scores of a cascade on held-out rows, each group a request: as they are, and lifted within each group."""
    plain, ordered = student.copy(), student.copy()
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        depth = max(1, round(share * len(rows)))
        best = np.argsort(-student[rows], kind="stable")[:depth]
        plain[rows[best]] = baseline[rows[best]]
        ordered[rows] = lifted(student[rows], best, baseline[rows[best]])
    return plain, ordered


def losses(held: HeldOut, overall: NDArray[Any], ordered: NDArray[Any], baseline: NDArray[Any]) -> str:
    def told(metric: str, scores: NDArray[Any]) -> str:
        found: Quality = paired_quality(metric, scores, baseline, held, 0)
        low, high = found.loss_interval
        return f"{found.loss:+.2%} [{low:+.2%}, {high:+.2%}]"

    return f"{told('auc', overall)} | {told('gauc', ordered)}"


def first_kept(run: Callable[[Request], Scores], baseline: Engine, requests: list[Request]) -> float:
    """The share of the baseline's first ten that is among these first ten."""
    shares = []
    for request in requests:
        ours, theirs = (set(np.argsort(-scores)[:FIRST].tolist()) for scores in (run(request), baseline.run(request)))
        shares.append(len(ours & theirs) / FIRST)
    return float(np.mean(shares))


# -- time


def ratios(runs: Mapping[str, Callable[[Request], Scores]], requests: list[Request], rounds: int) -> dict[str, str]:
    """Return each one's CPU time over that of the first, with its interval.

    The order changes each round, since caches keep weights.
    """
    taken: dict[str, list[int]] = {name: [] for name in runs}
    random, names = np.random.default_rng(0), list(runs)
    for number in range(_WARM + rounds):
        request = requests[number % len(requests)]
        for name in random.permutation(names).tolist():
            run = runs[name]
            start = time.thread_time_ns()
            run(request)
            if number >= _WARM:
                taken[name].append(time.thread_time_ns() - start)
    times = np.array(list(taken.values()))
    draws = random.integers(rounds, size=(1000, rounds))
    medians = np.median(times[:, draws], axis=2)
    spread = np.quantile(medians / medians[0], (0.025, 0.975), axis=1)
    middle = np.median(times, axis=1)
    return {
        name: f"{middle[i] / middle[0]:.3f} [{spread[0, i]:.3f}, {spread[1, i]:.3f}]" for i, name in enumerate(taken)
    }


# -- models


def students(config: StudyConfig, prepared: Prepared, epochs: int) -> dict[str, Weights]:
    """Each size in the middle of its values, and each at its least; as a study proposes them."""
    sizes = space_for(config.space, prepared).weights.architecture
    learning = Distillation(temperature=2.0, teacher_weight=0.5, epochs=epochs)
    found = {}
    for name, place in (("middle", lambda n: (n - 1) // 2), ("smallest", lambda n: 0)):
        chosen = {n: d.values[place(len(d.values))] for n, d in sizes.items() if isinstance(d, Choice)}
        told = ", ".join(f"{size} {value}" for size, value in chosen.items())
        found[f"{name} student ({told})"] = Weights(
            architecture=Architecture(tuple(chosen.items())), distillation=learning
        )
    return found


def opened(task: Task, weights: Weights, precision: Precision, say: Callable[[str], None]) -> Engine:
    fit(task, weights, say)
    artifact, _ = export(task, weights, precision, Form(), say)
    return open_replica(Path(task.home) / artifact.path, InstanceGroup(threads=1), None)


def requests_of(rows: int, prepared: Prepared, drawn: Request) -> list[Request]:
    """Return requests of one user and so many items each, from rows that are served."""
    random = np.random.default_rng(rows)
    users = {spec.name for spec in prepared.inputs if spec.side == "user"}
    total = len(next(iter(drawn.values())))
    found: list[Request] = []
    for _ in range(_REQUESTS):
        items, user = random.choice(total, rows, replace=total < rows), random.integers(total)
        found.append({n: values[np.full(rows, user) if n in users else items] for n, values in drawn.items()})
    return found


def run(config: StudyConfig, home: Home, epochs: int, rounds: int, say: Callable[[str], None]) -> Iterator[str]:
    torch.set_num_threads(cores_allowed())
    task = task_of(config, home)
    prepared, recommender = prepare(task, say), open_recommender(task, say)
    linear = [group.name for group in prepared.structure.groups if group.kind == "linear"]
    int8 = Precision(tuple((name, "int8-dynamic") for name in linear))
    baseline = opened(task, Weights(), Precision(), say)
    singles = {"baseline, int8": opened(task, Weights(), int8, say)}
    small = {n: opened(task, w, int8, say) for n, w in students(config, prepared, epochs).items()}
    singles |= {f"{name}, int8": engine for name, engine in small.items()}
    held = read_held_out(Path(prepared.holdout), "validation")
    theirs = run_blocks(baseline, held.inputs)
    alone = {name: run_blocks(engine, held.inputs) for name, engine in singles.items()}
    drawn = {name: values.numpy() for name, values in recommender.serving_rows(5000).items()}
    yield f"{config.name} on {describe()}: {len(held.labels)} held-out rows of {len(np.unique(held.groups))} users"
    for rows, depths in DEPTHS.items():
        requests = requests_of(rows, prepared, drawn)
        cascades = {
            f"{name}, the baseline on {depth}": (name, depth, Cascade(engine, baseline, depth))
            for name, engine in small.items()
            for depth in depths
        }
        runs: dict[str, Callable[[Request], Scores]] = {"baseline": baseline.run}
        runs |= {name: engine.run for name, engine in singles.items()}
        runs |= {name: cascade.run for name, (_, _, cascade) in cascades.items()}
        times = ratios(runs, requests, rounds)
        yield f"{rows} rows a request | time | loss of AUC, all rows | loss of AUC by user | of the first ten"
        for name, engine in singles.items():
            quality = losses(held, alone[name], alone[name], theirs)
            yield f"{name} | {times[name]} | {quality} | {first_kept(engine.run, baseline, requests):.2f}"
        for name, (student, depth, cascade) in cascades.items():
            plain, ordered = merged(alone[f"{student}, int8"], theirs, held.groups, depth / rows)
            quality = losses(held, plain, ordered, theirs)
            yield f"{name} | {times[name]} | {quality} | {first_kept(cascade.run, baseline, requests):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study")
    parser.add_argument("--home", required=True)
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    for line in run(load(options.study), Home.find(options.home), options.epochs, options.rounds, say):
        print(line, flush=True)


if __name__ == "__main__":
    main()
