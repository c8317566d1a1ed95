"""Coordinator's time for a trial in studies of different lengths, with real databases behind Optuna and MLflow.

    python tests/benchmarks/flat.py [--trials 100,1000,10000] [--asked 20]

Studies of the problem in `tests/samplers_tests/problem.py` are filled with so many ended trials, one in fifty of them
measured; then trials are asked for, told and recorded, and each step is timed. Printed: the median milliseconds of
each step, of proposals that were drawn at random too.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from random import Random
from statistics import median

import optuna
from optuna.trial import TrialState, create_trial

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import json

from objectives.records import Outcome, SimulatedRatios
from search.home import write_ahead
from search.ledger.ledger import Ledger
from search.samplers.drawn import draw
from search.study import Study
from search.trials import sought
from spaces.candidate import Candidate
from spaces.serialization import to_plain
from tests.samplers_tests.problem import LIMITS, OBJECTIVES, SPACE, costs, loss
from tests.search_tests.measurements import complete_outcome

_MEASURED_EVERY = 50


def outcome_of(candidate: Candidate, number: int) -> Outcome:
    """Return a measured outcome for the first and every fiftieth trial, one of a stopped trial for the others."""
    p95, throughput = costs(candidate)
    complete = complete_outcome(p95, throughput, loss(candidate) if number else 0.0)
    simulated = SimulatedRatios(p95, throughput, p95, p95, p95, throughput)
    if number % _MEASURED_EVERY == 0:
        return replace(complete, simulated=simulated)
    return Outcome("stopped", "it costs too much", seconds={"cost": 0.5}, simulated=simulated)


def filled(folder: Path, count: int) -> str:
    """Fill a database with ended trials of different candidates, the baseline first; return its URL."""
    storage = f"sqlite:///{folder / 'optuna.db'}"
    write_ahead(storage)
    Study("s", storage, OBJECTIVES, LIMITS, 0, "auto")
    study, random, trials = optuna.load_study(study_name="s", storage=storage), Random(0), []
    for number in range(count):
        drawn = draw(SPACE, random) if number else draw(SPACE, random, SPACE.starts()[0], 0.0)
        outcome = outcome_of(drawn.candidate, number)
        attributes = {"candidate": to_plain(drawn.candidate), "outcome": json.dumps(to_plain(outcome)), "minutes": 1.0}
        complete = outcome.measurement is not None
        trials.append(
            create_trial(
                state=TrialState.COMPLETE if complete else TrialState.PRUNED,
                values=sought(outcome.measurement, OBJECTIVES) if outcome.measurement is not None else None,
                params=dict(drawn.knobs),
                distributions=dict(drawn.distributions),
                user_attrs=attributes,
            )
        )
    study.add_trials(trials)
    return storage


def measure(count: int, asked: int) -> dict[str, list[float]]:
    """Return the milliseconds of each step of the trials that were asked for."""
    found: dict[str, list[float]] = {"open": [], "ask": [], "tell": [], "record": []}

    def timed(step: str, start: float) -> None:
        found[step].append(1000 * (time.perf_counter() - start))

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        storage = filled(folder, count)
        start = time.perf_counter()
        study = Study("s", storage, OBJECTIVES, LIMITS, 0, "auto")
        study.ended()
        timed("open", start)
        ledger = Ledger(f"sqlite:///{folder / 'mlflow.db'}", folder / "artifacts", "s", "1", folder)
        ledger.open({"name": "s"})
        for _ in range(asked):
            start = time.perf_counter()
            trial, candidate = study.ask(SPACE)
            timed("ask", start)
            start = time.perf_counter()
            study.tell(trial.number, outcome_of(candidate, trial.number), 1.0)
            timed("tell", start)
            start = time.perf_counter()
            ledger.record(study.ended()[-1])
            ledger.drain()
            study.front(study.contenders())
            timed("record", start)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", default="100,1000,10000")
    parser.add_argument("--asked", type=int, default=20)
    options = parser.parse_args()
    for count in map(int, options.trials.split(",")):
        found = measure(count, options.asked)
        steps = ", ".join(f"{step} {median(times):.1f} ms" for step, times in found.items())
        whole = sum(median(times) for step, times in found.items() if step != "open")
        print(f"{count} trials: {steps}; a trial {whole:.0f} ms", flush=True)


if __name__ == "__main__":
    main()
