"""Spread of the machine's pace: a request to a model as it is deployed by default, and on one thread.

    python tests/benchmarks/pace.py [--rounds 60] [--rows 200] [--model FILE --holdout FOLDER]

The model is that of other benchmarks, with requests of so many rows in the median, or a study's own (FOLDER as in
`mlruns/cache/holdouts`, with requests of its own). In each round a service curve is measured first, as in a search,
then the mean time of some requests, one at a time, of each deployment, the first of which alternates: of one look, and
of the median of three. Last come the looks that a visit takes its rate from, at the default deployment, with 8, 16 and
32 repetitions, or until answers have taken 1.5 s. Printed: the mean, the quantiles, and the standard deviation of
the logarithm, by itself and relative to the time on one thread, which the machine's own drift is no part of; of the
last looks, that time is the pace between the repetitions; and their seconds.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from objectives.held_out_rows import read_requests
from objectives.measure.deployment import load_target, quiet, warm_up
from objectives.measure.service_curves import measure_service_curve
from objectives.measurement.load_generator import Request, typical_requests
from objectives.measurement.load_target import LiveTarget
from objectives.measurement.pace import PaceTimer, service_and_pace_ms
from objectives.measurement.statistics import Floats
from objectives.serving.engines import open_replica
from objectives.serving.pool import Pool
from objectives.serving.split_engine import Engine
from spaces.techniques.placement import InstanceGroup, Placement
from tests.benchmarks.models import ONE_THREAD, baseline_model, lognormal_requests

DEPLOYMENTS = {"by default": Placement(), "on one thread": ONE_THREAD}
_LOOKS, _REQUESTS = 3, 12
_ROUNDS = (8, 16, 32)


def looks(model: Path, requests: Sequence[Request], rounds: int) -> tuple[dict[str, Floats], Floats]:
    """Return the mean milliseconds of a request of each deployment, (rounds, looks), and of longer looks at the first.

    The longer ones, (rounds, lengths, 3), have the rounds of `_ROUNDS`: milliseconds of a request, the pace meanwhile,
    and their seconds.
    """

    def engine(group: InstanceGroup) -> Engine:
        return open_replica(model, group, None)

    sample, targets = typical_requests(requests, _REQUESTS), dict[str, LiveTarget]()
    found: dict[str, list[list[float]]] = {name: [] for name in DEPLOYMENTS}
    longer: list[list[tuple[float, float, float]]] = []
    with quiet(), ExitStack() as stack:
        for name, placement in DEPLOYMENTS.items():
            pool = stack.enter_context(Pool(placement, engine))
            warm_up(pool.submit, requests, placement)
            targets[name] = load_target(pool, placement, requests)
        first, pace = targets["by default"], PaceTimer(targets["on one thread"], requests)

        def longer_look(count: int) -> tuple[float, float, float]:
            start = time.perf_counter()
            return *service_and_pace_ms(first, requests, pace, count), time.perf_counter() - start

        for number in range(rounds):
            measure_service_curve(engine, ONE_THREAD, requests, number)
            for name, target in [*targets.items()][:: 1 if number % 2 == 0 else -1]:
                target.settle()
                found[name].append([float(target.closed_loop(sample).mean()) for _ in range(_LOOKS)])
            longer.append([longer_look(count) for count in _ROUNDS])
    return {name: np.array(rows) for name, rows in found.items()}, np.array(longer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--holdout", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or baseline_model(Path(folder))
        requests: Sequence[Request] = lognormal_requests(300, seed=1, median=options.rows)
        if options.holdout:
            requests = read_requests(options.holdout)
        found, longer = looks(model, requests, options.rounds)
    reference = np.median(found["on one thread"], axis=1)
    print(f"{'':<30}{'mean':>9}{'10%':>9}{'50%':>9}{'90%':>9}{'deviation':>11}{'relative':>10}{'seconds':>9}")
    rows = [
        (f"{name}, {kind}", values, reference, "")
        for name, times in found.items()
        for kind, values in (("one look", times[:, 0]), ("median of three", np.median(times, axis=1)))
    ]
    for count, (service, pace, seconds) in zip(_ROUNDS, longer.transpose(1, 2, 0), strict=True):
        rows.append((f"by default, {count} repeated", service, pace, f"{np.median(seconds):>9.1f}"))
    for name, values, pace, seconds in rows:
        quantiles = np.quantile(values, (0.1, 0.5, 0.9))
        shown = "".join(f"{value:>9.3f}" for value in (values.mean(), *quantiles))
        print(f"{name:<30}{shown}{np.log(values).std():>11.3f}{np.log(values / pace).std():>10.3f}{seconds}")


if __name__ == "__main__":
    main()
