"""Quality of shapes sliced out of one elastic network, against the same shapes trained alone; seconds of both.

    python tests/benchmarks/elastic.py STUDY.yaml --home DIR [--kind student|pruned] [--shapes 10] [--seeds 1]
        [--epochs 10] [--teacher-weight 0.5] [--fine-tune 0] [--seconds 120]

Shapes are drawn from the study's space, the smallest first: students of a family, or the model pruned. The shapes
that are trained alone learn for as many epochs as a study trains them, with half of the loss from the teacher. Per
seed and shape: the relative loss of the metric on validation, through ONNX Runtime, of the slice and of the shape
trained alone, each against the baseline, and of the slice against the other, with its paired 95% interval over users.
What was fitted and evaluated is kept in the home; after so many seconds nothing new begins, and a second call goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from objectives.build.evaluate import evaluate
from objectives.build.stages import graphs as graphs_stage
from objectives.build.stages import prepare as prepare_stage
from objectives.build.stages import weights as weights_stage
from objectives.build.stages.weights import ELASTIC_STAGE
from objectives.jobs.requests import EvaluateRequest, ExportRequest, FitRequest, PrepareRequest, ScoreRequest
from objectives.measure.deployment import Deployment
from objectives.records import Artifact, Prepared
from objectives.serving.devices import cores_allowed
from objectives.task import Task
from search.config.defaults import space_for
from search.config.study_file import load
from search.home import Home
from search.session import task_of
from spaces.candidate import Candidate
from spaces.domains import Choice, least, middle
from spaces.serialization import digest
from spaces.techniques.architecture import Architecture
from spaces.techniques.distillation import Distillation
from spaces.techniques.placement import Placement
from spaces.techniques.pruning import Pruning
from spaces.weights import Weights, WeightsSpace


def shapes(space: WeightsSpace, kind: str, count: int) -> list[Weights]:
    """Draw different shapes of a kind, the smallest first; each has settings of distillation, in the middle."""
    domains = space.architecture if kind == "student" else space.pruning
    learning = Distillation(float(middle(space.distillation["temperature"])), 0.5, space.epochs)
    random = np.random.default_rng(0)

    def made(values: Mapping[str, Any]) -> Weights:
        if kind == "student":
            return Weights(architecture=Architecture(tuple(values.items())), distillation=learning)
        ratios = tuple((group, float(ratio)) for group, ratio in values.items() if float(ratio) > 0)
        return Weights(pruning=Pruning(ratios, "taylor", multiple=space.multiple), distillation=learning)

    strongest = {n: least(d) if kind == "student" else max(_choices(d)) for n, d in domains.items()}
    found = [made(strongest)]
    while len(found) < count:
        drawn = {name: random.choice(np.array(_choices(domain), dtype=object)) for name, domain in domains.items()}
        own = drawn == dict(space.own) if kind == "student" else not any(drawn.values())
        if not own and (weights := made(drawn)) not in found:
            found.append(weights)
    return found


def _choices(domain: object) -> tuple[Any, ...]:
    assert isinstance(domain, Choice)
    return domain.values


@dataclass(frozen=True)
class Fits:
    """Fits of a task, each made once; `known` are its seconds and losses, kept in a file."""

    task: Task
    prepared: Prepared
    known: dict[str, Any]
    file: Path

    def seconds(self, weights: Weights) -> float:
        """Fit the weights, and return how long it took."""
        return float(self._once(digest("fit", self.task.key(), weights, _stage(weights)), lambda: self._fit(weights)))

    def loss(self, weights: Weights, other: Weights) -> list[float]:
        """Return the relative loss of the weights against others, and its interval."""
        key = digest("loss", self.prepared.holdout, self.task.metric, *map(digest, (weights, other)), _stage(weights))
        return list(self._once(key, lambda: self._evaluate(weights, other)))

    def _once(self, key: str, compute: Callable[[], Any]) -> Any:
        if key not in self.known:
            self.known[key] = compute()
            self.file.write_text(json.dumps(self.known))
        return self.known[key]

    def _fit(self, weights: Weights) -> float:
        start = time.monotonic()
        weights_stage.fit(FitRequest(self.task, weights, torch.get_num_threads()), say)
        return time.monotonic() - start

    def _evaluate(self, weights: Weights, other: Weights) -> list[float]:
        ours, theirs = (self._deployed(one) for one in (weights, other))
        scores = ScoreRequest(ours, theirs, str(self.task.cache), self.prepared.holdout, "validation")
        quality = evaluate(EvaluateRequest(scores, self.prepared.metric, self.task.seed, confidence=0.95)).quality
        return [quality.loss, *quality.loss_interval]

    def _deployed(self, weights: Weights) -> Deployment:
        artifact: Artifact = self.prepared.baseline
        if weights != Weights():
            request = ExportRequest(self.task, Candidate(weights), torch.get_num_threads())
            artifact = graphs_stage.export(request, say).artifact
        return Deployment(artifact, str(Path(self.task.home) / artifact.path), Placement(), "fp32")


def _stage(weights: Weights) -> int:
    return ELASTIC_STAGE if weights.elastic else 0


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def run(fits: Fits, alone: list[Weights], seeds: int, network: Distillation, seconds: float) -> Iterator[str]:
    """Yield a line for each shape and seed, and the mean over them; `network` are the settings of the slices."""
    start, rows = time.monotonic(), []
    for seed in range(seeds):
        for number, weights in enumerate(alone):
            if time.monotonic() - start > seconds:
                yield "the time is used up: call again for the rest"
                return
            assert weights.distillation is not None
            learning = replace(weights.distillation, seed=seed)
            by_itself = replace(weights, distillation=learning)
            sliced = replace(weights, distillation=replace(network, seed=seed))
            took = fits.seconds(sliced), fits.seconds(by_itself)
            ours, theirs = (fits.loss(one, Weights())[0] for one in (sliced, by_itself))
            loss, low, high = fits.loss(sliced, by_itself)
            rows.append((*took, ours, theirs, loss))
            with_network = " with the network's training" if number == 0 else ""
            yield (
                f"seed {seed}  {_told(weights)}: slice {ours:+.2%} in {took[0]:.1f} s{with_network}, "
                f"alone {theirs:+.2%} in {took[1]:.1f} s; slice against alone {loss:+.2%} [{low:+.2%}, {high:+.2%}]"
            )
    sums = np.array(rows)
    yield (
        f"mean: slice {sums[:, 2].mean():+.3%}, alone {sums[:, 3].mean():+.3%}, slice against alone "
        f"{sums[:, 4].mean():+.3%}, at or above it in {int((sums[:, 4] <= 0).sum())} of {len(sums)}; "
        f"seconds: slices {sums[:, 0].sum():.0f}, alone {sums[:, 1].sum():.0f}"
    )


def _told(weights: Weights) -> str:
    return " ".join(
        f"{name.partition('.')[2]}={value}" for t in weights.techniques for name, value in t.knobs().items()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study")
    parser.add_argument("--home", required=True)
    parser.add_argument("--kind", choices=("student", "pruned"), default="student")
    parser.add_argument("--shapes", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=10, help="of the elastic network")
    parser.add_argument("--teacher-weight", type=float, default=0.5, help="in the training of the network")
    parser.add_argument("--fine-tune", type=int, default=0, help="epochs of each slice by itself")
    parser.add_argument("--seconds", type=float, default=1e9)
    options = parser.parse_args()
    torch.set_num_threads(cores_allowed())
    config, home = load(options.study), Home.find(options.home)
    task = task_of(config, home)
    prepared = prepare_stage.prepare(PrepareRequest(task, torch.get_num_threads()), say)
    folder = home.root / "elastic"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{config.name}.json"
    fits = Fits(task, prepared, json.loads(file.read_text()) if file.is_file() else {}, file)
    alone = shapes(space_for(config.space, prepared).weights, options.kind, options.shapes)
    print(f"{config.name}: {vars(options)}", flush=True)
    assert alone[0].distillation is not None
    network = replace(alone[0].distillation, epochs=options.fine_tune, elastic_epochs=options.epochs)
    network = replace(network, teacher_weight=options.teacher_weight)
    for line in run(fits, alone, options.seeds, network, options.seconds):
        print(line, flush=True)


if __name__ == "__main__":
    main()
