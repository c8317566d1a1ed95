"""Simulated against measured latency: random candidates on the virtual clock, and in a real open loop.

    python tests/benchmarks/simulated.py STUDY.yaml --home DIR [--candidates 100] [--seconds 600] [--log FILE]

Candidates are drawn at random from the study's space and exported with untrained weights; their service curves are
measured as a search does. Then each is opened beside the baseline, and both answer the same arrivals: Poisson at loads
of 0.4, 0.6 and 0.8 of what the baseline's replica serves, and a real trace at 0.6 (--log: a request log, by default
the Azure conversations of the test data). Both answer them twice, the candidate first and last, so that a value and its
ratio to the baseline's have two measurements each: how far these lie apart is the repeat spread of the measurement. At
0.6 the rate under the SLO is searched as well, the SLO being twice the baseline's p95, and the capacity is measured.
What was measured is kept in the home; after so many seconds nothing new begins, and a second call goes on.

On the virtual clock the same requests arrive at the same times. The machine's speed is that just before, when the rate
was taken, by its pace then (a request to the baseline's model on one thread). Rates and capacities are simulated as a
search does.

Printed: for each load, by percentile, the errors of the simulated value and of its ratio to the baseline, each next to
its repeat spread, as medians and 90% quantiles of |log(simulated / measured)|, from all candidates and both
measurements, and of |log(first / second)|, and in brackets the medians of the signed ones; those of the ratio also less
this median, which a search corrects by what it has measured; and of the pairs of candidates whose measured p95 ratio
(the geometric mean of both) differs by a fifth or more, the share that simulation puts in the same order. A repeat has
the errors of two measurements and an error that of one, so that those of a perfect simulation would be 0.7 times the
repeats. Printed percentages are of logarithms.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from objectives.held_out_rows import read_requests
from objectives.jobs.requests import ExportRequest
from objectives.measure.deployment import Deployment, close_kept, load_target, pace_ms, quiet, saturating, warm_up
from objectives.measure.virtual_target import SimulatedLoad, VirtualTarget
from objectives.measurement.arrivals import Traffic, gaps
from objectives.measurement.latency import Load
from objectives.measurement.load_generator import Request, drawn_requests
from objectives.measurement.load_target import LiveTarget, LoadTarget
from objectives.measurement.pace import service_and_pace_ms
from objectives.measurement.request_log import read_request_log, write_trace
from objectives.measurement.statistics import Floats, fewest_samples, percentile
from objectives.measurement.throughput import (
    Probe,
    RateSearch,
    measure_capacity,
    next_rate,
    probe,
    rate_under_slo,
)
from objectives.records import Artifact
from objectives.serving.engines import EngineError
from objectives.serving.pool import Pool
from search.cli.console import Console
from search.config.defaults import space_for
from search.config.study_file import load as load_study
from search.errors import JobError
from search.explore.cost_model import BASELINE, CostModel
from search.home import Home
from search.samplers.drawn import draw
from search.session import MEASUREMENT, jobs_of, open_session, prepare
from search.workers.meter_jobs import MeterJobs
from search.workers.paired_comparison import PairedComparison
from search.workers.processes import Workers, call, open_workers
from spaces.candidate import Candidate
from spaces.search_space import SearchSpace

AZURE = Path(os.environ.get("LEANREC_TEST_DATA", "../shared/data"), "arrivals", "azure_llm_2023_conv.csv")
LOADS = (0.4, 0.6, 0.8)
# The load of the trace, of the rate under the SLO and of the order of pairs.
MIDDLE = 0.6
PERCENTS = (50, 95, 99)
# Requests that count of a schedule, and those before them.
_COUNTED, _WARM_UP = 300, 60
# Requests that count of a probe, a multiple of its segments, and probes of each side.
_PROBE_REQUESTS, _PROBES = 300, 3
_DRAWS = 100_000
# Draws of service times, of whose percentiles the median counts.
_DRAWN = 5
_APART = 1.2


@dataclass(frozen=True)
class Schedule:
    """Arrivals at a load."""

    name: str
    traffic: Traffic
    load: float

    def percentiles(self, target: LoadTarget, requests: Sequence[Request], rate_rps: float, seed: int) -> list[float]:
        """Return the percentiles in milliseconds of what a target answers at a rate."""
        count = _WARM_UP + _COUNTED
        target.settle()
        played = target.open_loop(drawn_requests(requests, count, seed), gaps(self.traffic, rate_rps, count, seed))
        return [percentile(played.latency_ms[_WARM_UP:], percent) for percent in PERCENTS]


def schedules(trace: Path) -> list[Schedule]:
    poisson = [Schedule(f"poisson {load:g}", Traffic(), load) for load in LOADS]
    return [*poisson, Schedule(f"trace {MIDDLE:g}", Traffic("replay", trace=str(trace)), MIDDLE)]


def highest_rate(target: LoadTarget, requests: Sequence[Request], capacity: Floats, slo_ms: float, seed: int) -> float:
    """Search a target's rate under an SLO at p95, as a benchmark does."""
    service = target.closed_loop(drawn_requests(requests, 60, seed, 1))
    search = RateSearch((), capacity, service[None])
    probes: list[Probe] = []
    for number in range(_PROBES):
        rate = next_rate(search, slo_ms, 95, fewest_samples(95))
        probes.append(
            probe(target, requests, Traffic(), rate, float(np.median(capacity)), _PROBE_REQUESTS, seed + number)
        )
        search = search.with_probes(probes[-1:])
    return rate_under_slo(search, slo_ms, 95)


@dataclass(frozen=True)
class OpenBaseline:
    """Open pool of the baseline, beside which candidates are measured."""

    deployment: Deployment
    target: LiveTarget
    requests: Sequence[Request]
    schedules: Sequence[Schedule]

    def measured(self, candidate: LiveTarget, seed: int) -> dict[str, Any]:
        """Return what candidate and baseline answer."""
        baseline, requests = replace(self.target, next_part=candidate.next_part), self.requests
        capacity = measure_capacity((candidate, baseline), requests, seed)
        found: dict[str, Any] = {"capacity_rps": np.median(capacity, axis=0).tolist()}
        for schedule in self.schedules:
            service_ms, pace = service_and_pace_ms(baseline, requests, partial(pace_ms, self.deployment, requests))
            rate = schedule.load * 1000 / service_ms
            order = (candidate, baseline, baseline, candidate)
            first, *middle, last = [schedule.percentiles(target, requests, rate, seed) for target in order]
            found[schedule.name] = {"rate_rps": rate, "pace_ms": pace, "candidate": [first, last], "baseline": middle}
        slo_ms = 2 * float(np.mean(found[f"poisson {MIDDLE:g}"]["baseline"], 0)[PERCENTS.index(95)])
        found["rate_rps"] = [
            highest_rate(target, requests, capacity[:, side], slo_ms, seed)
            for side, target in enumerate((candidate, baseline))
        ]
        return found


@dataclass(frozen=True)
class Simulation:
    """Simulation of a study's candidates, by the arrivals that were measured and as a search does."""

    costs: CostModel
    requests: Sequence[Request]
    schedules: Sequence[Schedule]
    seed: int

    def virtual(self, candidate: Candidate, seed: int) -> VirtualTarget:
        """Return a candidate on the virtual clock, whose service times are drawn by a seed."""
        curves, outstanding = self.costs.curves(candidate), saturating(candidate.placement, self.requests)
        return VirtualTarget.of(candidate.placement, curves, seed, outstanding)

    @cached_property
    def load(self) -> SimulatedLoad:
        """The load of rates and capacities."""
        baseline = self.virtual(BASELINE, self.seed)
        return SimulatedLoad.of(baseline, self.requests, Load(Traffic(), MIDDLE, 95, None), self.seed)

    def simulated(self, candidate: Candidate, seed: int, measured: Mapping[str, Any]) -> dict[str, Any]:
        """Return percentiles of candidate and baseline by schedule, and the ratios of rates.

        Args:
            seed: of the arrivals
            measured: by schedule, among others the rate and the machine's pace
        """
        ratios = self.load.ratios(self.virtual(candidate, seed))
        found: dict[str, Any] = {"throughput": ratios.throughput_ratio, "capacity": ratios.capacity_ratio}
        for schedule in self.schedules:
            found[schedule.name] = {
                name: np.median(
                    [self._percentiles(schedule, side, seed, at, measured[schedule.name]) for at in range(_DRAWN)], 0
                )
                for name, side in (("candidate", candidate), ("baseline", BASELINE))
            }
        return found

    def _percentiles(
        self, schedule: Schedule, candidate: Candidate, seed: int, drawn: int, measured: Mapping[str, float]
    ) -> NDArray[np.float64]:
        """Return the percentiles of one draw of service times, at the machine's speed."""
        assert self.costs.reference_pace_ms is not None
        slowness = measured["pace_ms"] / self.costs.reference_pace_ms
        target = self.virtual(candidate, drawn)
        return slowness * np.array(schedule.percentiles(target, self.requests, slowness * measured["rate_rps"], seed))


def drawn(space: SearchSpace, seed: int) -> Iterator[Candidate]:
    """Draw candidates, none twice but for the values of its weights, as far as a space has more."""
    random, seen = Random(seed), set[str]()
    for _ in range(_DRAWS):
        candidate = draw(space, random).candidate.untrained
        if candidate.id not in seen:
            seen.add(candidate.id)
            yield candidate


class ResultFile:
    """Results by candidate, in a file of lines."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.found: dict[str, dict[str, Any]] = {}
        for line in file.read_text().splitlines() if file.exists() else ():
            with contextlib.suppress(ValueError):  # a line that a kill left unfinished
                self.found |= json.loads(line)

    def add(self, candidate: Candidate, result: dict[str, Any]) -> None:
        self.found[candidate.id] = result
        with self._file.open("a") as lines:
            lines.write("\n" + json.dumps({candidate.id: result}))


def measure(
    jobs: MeterJobs,
    costs: CostModel,
    workers: Workers,
    candidate: Candidate,
    beside: OpenBaseline,
    seed: int,
) -> dict[str, Any]:
    """Measure a candidate's curves, and what it and the baseline answer; a failure has its reason."""
    limit = jobs.config.workers.fit_seconds

    def ask(worker: Any, request: Any) -> Any:
        return call(worker, request, limit, lambda line: None)

    try:
        artifact: Artifact = ask(workers.builder, ExportRequest(jobs.task, candidate, 1)).artifact
        for part in costs.missing(candidate):
            costs.learn(candidate, part, ask(workers.meter, costs.request(artifact, candidate, part)))
        costs.ratios(candidate)  # ValueError where a run of a size that was not measured is simulated
        model = Path(jobs.task.home, artifact.path)
        with Pool.open(model, candidate.placement, candidate.precision.compute) as pool, quiet():
            warm_up(pool.submit, beside.requests, candidate.placement)
            target = replace(load_target(pool, candidate.placement, beside.requests), next_part=pool.rest)
            measured = beside.measured(target, seed)
    except (JobError, EngineError, ValueError) as error:
        return {"failed": " ".join(str(error).split())}
    return {"placement": candidate.placement.knobs(), "measured": measured, "seed": seed}


def logs(simulated: Floats, measured: Floats) -> Floats:
    """Return log(simulated / measured), NaN where one of them is infinite, 0 or NaN."""
    with np.errstate(all="ignore"):
        found = np.log(simulated / measured)
    known: Floats = np.where(np.isfinite(found), found, np.nan)
    return known


def format_errors(errors: Floats) -> str:
    """Return the median and the 90% quantile of the errors' size, and the median of the signed ones."""
    known = errors[np.isfinite(errors)]
    if not len(known):
        return f"{'none':>24}"
    size = np.abs(known)
    return f"{np.median(size):>7.1%} {np.quantile(size, 0.9):>7.1%} ({np.median(known):>+6.1%})"


@dataclass(frozen=True)
class Compared:
    """A quantity of each candidate as it was simulated, (n,), and measured twice, (n, 2)."""

    simulated: Floats
    measured: Floats

    @property
    def errors(self) -> Floats:
        """Logarithms of the simulated over each of the two measured values, (n, 2)."""
        return logs(self.simulated[:, None], self.measured)

    @property
    def corrected(self) -> Floats:
        """The errors less their median, which all candidates share, (n, 2)."""
        errors = self.errors
        return errors - np.nanmedian(errors) if np.isfinite(errors).any() else errors

    @property
    def repeats(self) -> Floats:
        """Logarithms of the first over the second measured value, (n,)."""
        return logs(self.measured[:, 0], self.measured[:, 1])


def compared(found: Sequence[dict[str, Any]], name: str, place: int) -> tuple[Compared, Compared]:
    """Return the values of a percentile at a load, and their ratios to the baseline's."""
    sides = ("candidate", "baseline")
    ours, theirs = (np.array([one["simulated"][name][side][place] for one in found]) for side in sides)
    values, baselines = (np.array([one["measured"][name][side] for one in found])[..., place] for side in sides)
    with np.errstate(all="ignore"):
        return Compared(ours, values), Compared(ours / theirs, values / baselines)


def summarize(found: Sequence[dict[str, Any]], names: Sequence[str]) -> None:
    """Print the errors by load and percentile, and the order of pairs; nothing of no candidate."""
    if not found:
        return
    heads = ("value", "its repeats", "ratio to the baseline", "less its median", "its repeats")
    print(f"{'':<19}{''.join(f'{head:>26}' for head in heads)}")
    for name in names:
        for place, percent in enumerate(PERCENTS):
            value, ratio = compared(found, name, place)
            errors = value.errors, value.repeats, ratio.errors, ratio.corrected, ratio.repeats
            print(f"{name:<14}{f'p{percent}':>5}{''.join(f'{format_errors(each):>26}' for each in errors)}")
    for what, key in (("throughput", "rate_rps"), ("capacity", "capacity_rps")):
        simulated = np.array([one["simulated"][what] for one in found], dtype=np.float64)
        real = np.array([np.divide(*one["measured"][key]) if one["measured"][key][1] else np.nan for one in found])
        print(f"{what:<19}{'':>52}{format_errors(logs(simulated, real)):>26}")
    ratios = compared(found, f"poisson {MIDDLE:g}", PERCENTS.index(95))[1]
    with np.errstate(all="ignore"):
        rows = [*zip(ratios.simulated, np.sqrt(ratios.measured.prod(axis=1)), strict=True)]
    pairs = alike = 0
    for (one_s, one_m), (other_s, other_m) in itertools.combinations(rows, 2):
        known = np.isfinite([one_s, other_s, one_m, other_m]).all()
        if known and max(one_m, other_m) / min(one_m, other_m) >= _APART:
            pairs += 1
            alike += (one_s < other_s) == (one_m < other_m)
    print(f"pairs whose p95 ratio differs by a fifth or more: {alike} of {pairs} are ordered alike")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--candidates", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, default=AZURE)
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    config, home, console = load_study(str(options.study), []), Home(options.home.resolve()), Console(False, False)
    known = ResultFile(home.root / f"simulated-twice-{MEASUREMENT}-{config.name}.jsonl")
    trace = home.root / "trace.npz"
    write_trace(read_request_log(options.log), trace)
    played = schedules(trace)
    session = open_session(config, home)
    with open_workers(home.logs(config.name)) as workers:
        prepared = prepare(session, workers.builder, console)
        jobs, space = jobs_of(config, home, prepared), space_for(config.space, prepared)
        costs = CostModel(jobs, home.service_curves(f"{config.name}-{MEASUREMENT}"))
        costs.measure_baseline(PairedComparison(jobs, workers.builder, workers.meter, console))
        requests = read_requests(Path(prepared.holdout))
        with Pool.open(home.root / prepared.baseline.path, BASELINE.placement) as pool:
            warm_up(pool.submit, requests, BASELINE.placement)
            deployment = Deployment(
                prepared.baseline, str(home.root / prepared.baseline.path), BASELINE.placement, "fp32"
            )
            beside = OpenBaseline(deployment, load_target(pool, BASELINE.placement, requests), requests, played)
            for number, candidate in enumerate(itertools.islice(drawn(space, options.seed), options.candidates)):
                if candidate.id in known.found:
                    continue
                if time.monotonic() > end:
                    break
                start = time.monotonic()
                known.add(candidate, measure(jobs, costs, workers, candidate, beside, number))
                console.say(f"{number + 1} of {options.candidates}: {time.monotonic() - start:.1f} s")
            close_kept()
    candidates = [*itertools.islice(drawn(space, options.seed), options.candidates)]
    results = [(each, known.found[each.id]) for each in candidates if each.id in known.found]
    simulation = Simulation(costs, requests, played, config.seed)
    able = [
        {**one, "simulated": simulation.simulated(each, one["seed"], one["measured"])}
        for each, one in results
        if "failed" not in one
    ]
    print(f"{config.name}: {len(able)} candidates, {len(results) - len(able)} more that cannot be built or simulated")
    for reason in sorted({one["failed"] for _, one in results if "failed" in one}):
        print(f"  {reason[:160]}")
    summarize(able, [each.name for each in played])
    routed = [one for one in able if one["placement"]["placement.route_rows"]]
    if routed:
        print(f"\nof these {len(routed)} that route large requests to a second instance group")
        summarize(routed, [each.name for each in played])


if __name__ == "__main__":
    main()
