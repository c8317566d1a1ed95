"""Quality against the temperature of distillation, for one student: the mean of several seeds, with its interval.

    python tests/benchmarks/techniques/temperatures.py STUDY.yaml --home DIR [--seeds 3] [--weight 0.5]

The student has each of its family's sizes in the middle and starts from the teacher's weights; beside it stands the
same student on the labels alone, for as many passes. A seed changes the order of the lessons and whatever is drawn
besides; the baseline, the held-out rows and the student's sizes stay. Judged on validation through ONNX Runtime.
The interval is Student's t over the seeds: of the training's own noise, not of the rows'. What was judged is kept in
the home, and a second call does the rest.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from objectives.build.evaluate import evaluate
from objectives.build.fit import fit
from objectives.compression.export import Signature, to_onnx
from objectives.jobs.requests import EvaluateRequest, ScoreRequest
from objectives.measure.deployment import Deployment
from objectives.onnx_graph import save_graph
from objectives.recommenders.load import open_recommender
from objectives.recommenders.protocol import Recommender
from objectives.records import Artifact, Prepared
from objectives.serving.devices import cores_allowed
from objectives.task import Task
from search.config.defaults import space_for
from search.config.sections import StudyConfig
from search.config.study_file import load
from search.home import Home
from search.session import task_of
from spaces.domains import middle
from spaces.serialization import digest
from spaces.techniques.architecture import Architecture
from spaces.techniques.distillation import Distillation
from spaces.techniques.placement import Placement
from spaces.weights import Weights
from tests.build_tests.staged import prepare

TEMPERATURES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
EXAMPLE_ROWS = 257


def batches(config: StudyConfig, prepared: Prepared, weight: float) -> dict[str, Weights]:
    """Return the training data by teacher: labels alone, then each temperature."""
    space = space_for(config.space, prepared).weights
    shape = Architecture(tuple((name, middle(domain)) for name, domain in space.architecture.items()))
    alone = Distillation(temperature=1.0, teacher_weight=0.0, epochs=space.epochs)
    teacher_scores = {f"T = {t:g}": replace(alone, temperature=t, teacher_weight=weight) for t in TEMPERATURES}
    return {
        name: Weights(architecture=shape, distillation=learning)
        for name, learning in {"labels alone": alone, **teacher_scores}.items()
    }


def loss(recommender: Recommender, prepared: Prepared, task: Task, weights: Weights, seed: int, folder: Path) -> float:
    """Loss on validation, relative to the baseline."""
    fitted = fit(recommender, weights, seed, lambda line: None)
    key = digest("temperatures", recommender.key, weights, seed)[:20]
    path = folder / f"{key}.onnx"
    save_graph(to_onnx(fitted.model, recommender.serving_rows(EXAMPLE_ROWS), Signature(recommender.once)), path)
    artifact = Artifact(key, str(path), {}, path.stat().st_size, 0.0)
    ours = Deployment(artifact, str(path), Placement(), "fp32")
    base = prepared.baseline
    theirs = Deployment(base, str(Path(task.home) / base.path), Placement(), "fp32")
    scores = ScoreRequest(ours, theirs, str(task.cache), prepared.holdout, "validation")
    found = evaluate(EvaluateRequest(scores, task.metric, task.seed, confidence=0.95))
    path.unlink()
    return found.quality.loss


def told(name: str, losses: Sequence[float]) -> str:
    mean = float(np.mean(losses))
    low, high = stats.t.interval(0.95, len(losses) - 1, mean, stats.sem(losses))
    each = ", ".join(f"{value:+.2%}" for value in losses)
    return f"  {name:<14} {mean:+.3%} [{low:+.3%}, {high:+.3%}]   seeds: {each}"


def run(config: StudyConfig, home: Home, seeds: int, weight: float, say: Callable[[str], None]) -> Iterator[str]:
    torch.set_num_threads(cores_allowed())
    task = task_of(config, home)
    prepared, recommender = prepare(task, say), open_recommender(task, say)
    folder = home.root / "temperatures"
    folder.mkdir(parents=True, exist_ok=True)
    known = folder / f"{config.name}.json"
    found: dict[str, float] = json.loads(known.read_text()) if known.is_file() else {}
    some = next(iter(batches(config, prepared, weight).values()))
    assert some.architecture is not None and some.distillation is not None
    shape = ", ".join(f"{name} {value}" for name, value in some.architecture.sizes)
    yield (
        f"{config.name}: loss of {task.metric} on validation of the student with {shape}; {some.distillation.epochs} "
        f"passes, the teacher's weight {weight:g}, {seeds} seeds"
    )
    for name, weights in batches(config, prepared, weight).items():
        losses = []
        for seed in range(seeds):
            key = digest(prepared.holdout, task.metric, weights, seed)[:20]
            if key not in found:
                found[key] = loss(recommender, prepared, task, weights, seed, folder)
                known.write_text(json.dumps(found))
            losses.append(found[key])
        yield told(name, losses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study")
    parser.add_argument("--home", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--weight", type=float, default=0.5, help="the teacher's, beside the labels'")
    options = parser.parse_args()

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    for line in run(load(options.study), Home.find(options.home), options.seeds, options.weight, say):
        print(line, flush=True)


if __name__ == "__main__":
    main()
