"""Studies of two versions of leanrec, both fronts judged in one final benchmark.

    python tests/benchmarks/side_by_side.py STUDY NEW_HOME OLD_HOME [--visits 3] [--folder DIR]

Both homes hold a study of that name: the new one run by this version, the old one by an earlier one, whose trials are
read from Optuna's database. The points of both fronts are measured in the same visits, in groups drawn anew for each,
beside the new study's baseline and on its requests. The loss of a point is the one that its own study found on
validation, against its own baseline. Printed: the points, and for each study the candidates that were measured in
part, evaluated and benchmarked, the different weights, the hypervolume, and the best p95 and throughput ratios within
0.5% of loss; then the same of what each study had after two minutes of its budget.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from objectives.jobs.requests import VisitRequest
from objectives.measure.benchmark import visit_together
from objectives.measure.deployment import Deployment, quiet
from objectives.measurement.latency import Load, Window
from objectives.measurement.recording import read_recording
from objectives.records import Artifact, Latency, NotFiniteError, Throughput
from search.cli.console import Console
from search.config.study_file import load as load_study
from search.explore.benchmark_groups import TOGETHER
from search.front import hypervolume, non_dominated, unit_objectives
from search.home import Home
from search.session import Session, open_session
from search.workers.meter_jobs import ratio_noise
from spaces.serialization import from_plain
from spaces.techniques.placement import Placement

_WITHIN = 0.005
_MINUTES = (2.0, np.inf)


@dataclass(frozen=True)
class Point:
    """A benchmarked trial of a study: its numbers there, and how it is run.

    minute: of the budget, when it ended; of the dry run, which is no part of that, where it was one of its trials
    """

    trial: int
    p95_ratio: float
    throughput_ratio: float
    loss: float
    minute: float
    deployment: Deployment


@dataclass(frozen=True)
class Found:
    """Points that a study found, and counts of its candidates."""

    points: tuple[Point, ...]
    trials: int
    evaluated: int
    weights: int


def found_in(home: Path, study: str) -> Found:
    """Read a study of any version from its database."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    trials = optuna.load_study(study_name=study, storage=f"sqlite:///{home}/mlruns/optuna.db").trials
    points, evaluated, different = [], 0, set()
    for trial in trials:
        plain, candidate = trial.user_attrs.get("outcome"), trial.user_attrs.get("candidate")
        if plain is None or candidate is None:
            continue
        outcome: Mapping[str, Any] = json.loads(plain) if isinstance(plain, str) else plain
        measured = outcome.get("measurement")
        if outcome.get("quality") or measured:
            evaluated += 1
            different.add(json.dumps(candidate["weights"], sort_keys=True))
        if measured is None:
            continue
        points.append(
            Point(
                trial.number,
                measured["latency"]["p95_ratio"],
                measured["throughput"]["ratio"],
                measured["quality"]["loss"],
                trial.user_attrs.get("minutes", np.inf),
                _deployment(home, outcome["artifact"], candidate),
            )
        )
    return Found(tuple(points), len(trials), evaluated, len(different))


def _deployment(home: Path, plain: Mapping[str, Any], candidate: Mapping[str, Any]) -> Deployment:
    artifact = Artifact(plain["key"], plain["path"], {}, plain["model_bytes"], 0.0)
    placement = from_plain(Placement, candidate["placement"])
    return Deployment(artifact, str(home / plain["path"]), placement, candidate["precision"]["compute"])


def front_of(points: Sequence[Point], max_loss: float, minutes: float) -> list[Point]:
    """Return the points that were best after so many minutes, by the numbers that their study had."""
    kept = [point for point in points if point.loss <= max_loss and point.minute <= minutes and point.trial != 0]
    table = [[point.p95_ratio, -point.throughput_ratio, max(point.loss, 0.0)] for point in kept]
    return [point for point, best in zip(kept, non_dominated(np.reshape(table, (-1, 3))), strict=True) if best]


def judge(
    session: Session, baseline: Deployment, points: Mapping[str, Deployment], folder: Path, visits: int
) -> dict[str, tuple[Latency, Throughput]]:
    """Measure all points in the same visits; those that refuse too many requests have no numbers."""
    jobs = session.jobs(session.front())
    load: Load = jobs.load
    window: Window = jobs.window("final")
    for number in range(visits):
        names = random.Random(number).sample(list(points), len(points))
        for first in range(0, len(names), TOGETHER):
            group = names[first : first + TOGETHER]
            files = tuple(str(folder / f"{name}.npz") for name in group)
            deployments = tuple(points[name] for name in group)
            request = VisitRequest(jobs.prepared.holdout, deployments, baseline, load, window, 0, number, files)
            print(f"visit {number + 1} of {visits}: {', '.join(group)}", file=sys.stderr, flush=True)
            with quiet():
                visit_together(request)
    recordings = {name: read_recording(folder / f"{name}.npz") for name in points}
    alone = {}
    for name, recording in recordings.items():
        try:
            alone[name] = recording.summarize()
        except NotFiniteError as error:
            print(f"{name} has no numbers: {error}")
    return {
        name: recordings[name].summarize(ratio_noise([each for other, each in alone.items() if other != name]))
        for name in alone
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study")
    parser.add_argument("new", type=Path)
    parser.add_argument("old", type=Path)
    parser.add_argument("--visits", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="of the raw timings (default: removed in the end)")
    options = parser.parse_args()
    config = load_study(options.study, [])
    session = open_session(config, Home(options.new.resolve()))
    max_loss = config.quality.max_loss
    found = {name: found_in(getattr(options, name).resolve(), config.name) for name in ("new", "old")}
    baseline = next(point for point in found["new"].points if point.trial == 0).deployment
    fronts = {
        (name, minutes): front_of(study.points, max_loss, minutes)
        for name, study in found.items()
        for minutes in _MINUTES
    }
    named = {f"{name}-{point.trial}": point for (name, _), members in fronts.items() for point in members}
    Console(quiet=False, as_json=False).say(f"{len(named)} points of both fronts")
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        deployments = {key: point.deployment for key, point in named.items()}
        judged = judge(session, baseline, deployments, folder, options.visits)
    print(f"{'point':<12}{'loss':>9}{'p95':>24}{'service':>9}{'throughput':>24}{'capacity':>10}{'p95 then':>10}")
    for key, (latency, throughput) in sorted(judged.items(), key=lambda item: item[1][0].p95_ratio):
        p95 = "{:.3f} [{:.3f}, {:.3f}]".format(latency.p95_ratio, *latency.p95_ratio_interval)
        rate = "{:.2f} [{:.2f}, {:.2f}]".format(throughput.ratio, *throughput.ratio_interval)
        print(
            f"{key:<12}{named[key].loss:>9.2%}{p95:>24}{latency.service_p50_ratio:>9.3f}{rate:>24}"
            f"{throughput.capacity_ratio:>10.2f}{named[key].p95_ratio:>10.3f}"
        )
    for name, study in found.items():
        print(
            f"{name}: {study.trials} trials, {study.evaluated} evaluated, {len(study.points)} benchmarked, "
            f"{study.weights} different weights evaluated"
        )
    for (name, minutes), members in fronts.items():
        kept = [(point, *judged[key]) for point in members if (key := f"{name}-{point.trial}") in judged]
        cube = unit_objectives(
            [latency.p95_ratio for _, latency, _ in kept],
            [throughput.ratio for _, _, throughput in kept],
            [point.loss for point, _, _ in kept],
            max_loss,
        )
        within = [(latency.p95_ratio, throughput.ratio) for point, latency, throughput in kept if point.loss <= _WITHIN]
        best = (
            f"p95 {min(p95 for p95, _ in within):.3f}, throughput {max(rate for _, rate in within):.1f}"
            if within
            else "none"
        )
        when = "in the end" if minutes == np.inf else f"after {minutes:g} minutes"
        print(f"{name} {when}: {len(kept)} points, hypervolume {hypervolume(cube):.3f}, best within 0.5%: {best}")


if __name__ == "__main__":
    main()
