"""MLPerf's LoadGen (Reddi et al., ISCA 2020) as a second opinion on our clock and on our generator of load.

    python tests/benchmarks/loadgen.py [--seconds 5] [--rounds 12]

The clock: LoadGen drives the pool, and the same queries are timed by ours, from issue to answer; LoadGen's trace says
how late it issued each. Its own clock runs longer at both ends: through the wait for the interpreter and the call that
reports the answer. What that costs is measured in the same run, on an engine that waits as long and computes nothing.

The generator: LoadGen's Server and our open loop play the same requests at the same Poisson rate, in turns.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlperf_loadgen
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from objectives.measure.deployment import quiet, warm_up
from objectives.measurement.arrivals import Traffic, gaps
from objectives.measurement.interference import InterferenceMonitor
from objectives.measurement.load_generator import closed_loop, open_loop, saturated, settle
from objectives.measurement.statistics import Floats, fewest_samples, percentile_interval
from objectives.serving.pool import PendingResult, Pool
from spaces.techniques.placement import InstanceGroup, Placement
from tests.benchmarks.models import Requests, baseline_model, lognormal_requests
from tests.benchmarks.pool_cost import VERDICTS

PERCENTS = (50, 90, 95, 97, 99)
CLOCKS_AGREE, GENERATORS_AGREE = 0.01, 0.1
LOAD = 0.6
SERVER, SINGLE_STREAM = mlperf_loadgen.TestScenario.Server, mlperf_loadgen.TestScenario.SingleStream
# One thread each for the generator and the engine.
PLACEMENT = Placement(InstanceGroup(threads=1))
# So lenient that LoadGen's verdict is on the length of the run alone.
_LIMIT_NS = 1_000_000_000
_POLL_MS = 100
_LATENESS = re.compile(r'"ph":"b".*"query_seq":(\d+),.*"issue_start_ns":(\d+)')
Submit = Callable[[Mapping[str, Any]], PendingResult]


@dataclass(frozen=True, eq=False)
class Driven:
    """One run of LoadGen.

    theirs_ms: by percentile, as LoadGen's own log tells
    verdict: VALID or INVALID
    ours_ms: (n,) from issue to answer, and LoadGen's lateness before that, in the order of issue
    numbers: (n,), which request each query was
    disturbed: the machine was busy with something else
    """

    theirs_ms: Mapping[int, float]
    verdict: str
    ours_ms: Floats
    numbers: tuple[int, ...]
    disturbed: bool


@dataclass(frozen=True)
class Agreement:
    """One percentile in milliseconds by both clocks, and what lies between them where the model takes no time."""

    percent: int
    theirs_ms: float
    ours_ms: float
    cost_ms: float

    @property
    def allowed_ms(self) -> float:
        return CLOCKS_AGREE * self.theirs_ms + self.cost_ms

    @property
    def kept(self) -> bool:
        return abs(self.theirs_ms - self.ours_ms) <= self.allowed_ms

    def __str__(self) -> str:
        return (
            f"  p{self.percent}: LoadGen {self.theirs_ms:.4f} ms, ours {self.ours_ms:.4f} ms, apart by "
            f"{self.theirs_ms - self.ours_ms:+.4f}, allowed {self.allowed_ms:.4f} (clocks' own {self.cost_ms:.4f})  "
            f"{'kept' if self.kept else 'MISSED'}"
        )


@dataclass(frozen=True)
class Round:
    """The p50 in milliseconds from the scheduled arrival by each generator."""

    verdict: str
    theirs_ms: float
    ours_ms: float
    disturbed: bool


def at_rank(samples: Floats, percent: int) -> float:
    """LoadGen's percentile of n samples is number n q of them in order, from 0 (results.cc, ProcessLatencies)."""
    return float(np.sort(samples)[int(len(samples) * (percent / 100))])


def settings(scenario: Any, seconds: float, seed: int) -> Any:
    asked = mlperf_loadgen.TestSettings()
    asked.scenario, asked.mode = scenario, mlperf_loadgen.TestMode.PerformanceOnly
    asked.min_duration_ms, asked.min_query_count = int(seconds * 1e3), fewest_samples(max(PERCENTS))
    asked.qsl_rng_seed = asked.sample_index_rng_seed = asked.schedule_rng_seed = seed
    return asked


def server(rate_rps: float, seconds: float, seed: int = 0) -> Any:
    """Poisson arrivals at a rate."""
    asked = settings(SERVER, seconds, seed)
    asked.server_target_qps, asked.server_target_latency_ns = rate_rps, _LIMIT_NS
    return asked


def single_stream(service_ms: float, seconds: float, seed: int = 0) -> Any:
    """One query after the other; LoadGen makes queries enough for half the service time that is told."""
    asked = settings(SINGLE_STREAM, seconds, seed)
    asked.single_stream_expected_latency_ns = int(service_ms * 1e6 / 2)
    return asked


def drive(submit: Submit, requests: Requests, asked: Any) -> Driven:
    """Let LoadGen issue the requests, drawn with replacement, until it has enough. A request's error is raised."""
    clock = time.perf_counter_ns
    issued: list[int] = []
    answers: list[PendingResult] = []
    numbers: list[int] = []

    def issue(samples: Sequence[Any]) -> None:
        for sample in samples:
            issued.append(clock())
            answer = submit(requests[sample.index])
            answers.append(answer)
            numbers.append(sample.index)
            answer.add_done_callback(partial(_complete, sample.id))

    with tempfile.TemporaryDirectory() as folder:
        settle()
        monitor = InterferenceMonitor()
        _start(issue, len(requests), asked, folder)
        interference = monitor.stop()
        found = _read_log(Path(folder) / "mlperf_log_detail.txt")
        late_ns = _read_lateness(Path(folder) / "mlperf_log_trace.json")
    for answer in answers:
        answer.result()
    taken_ns = np.array([answer.finished_ns for answer in answers]) - np.array(issued)
    theirs = {percent: found[f"result_{percent:.2f}_percentile_latency_ns"] / 1e6 for percent in PERCENTS}
    ours = (taken_ns + late_ns) / 1e6
    return Driven(theirs, found["result_validity"], ours, tuple(numbers), interference.busy)


def _complete(query: int, done: Future[Any]) -> None:
    mlperf_loadgen.QuerySamplesComplete([mlperf_loadgen.QuerySampleResponse(query, 0, 0)])


def _start(issue: Callable[[Sequence[Any]], None], count: int, asked: Any, folder: str) -> None:
    logs = mlperf_loadgen.LogSettings()
    logs.log_output.outdir, logs.log_output.copy_summary_to_stdout = folder, False
    logs.enable_trace, logs.log_mode_async_poll_interval_ms = True, _POLL_MS
    sut = mlperf_loadgen.ConstructSUT(issue, lambda: None)
    library = mlperf_loadgen.ConstructQSL(count, count, lambda samples: None, lambda samples: None)
    try:
        mlperf_loadgen.StartTestWithLogSettings(sut, library, asked, logs)
    finally:
        mlperf_loadgen.DestroyQSL(library)
        mlperf_loadgen.DestroySUT(sut)


def _read_log(path: Path) -> dict[str, Any]:
    """The last value of each key."""
    lines = (line.removeprefix(":::MLLOG ") for line in path.read_text().splitlines() if line.startswith(":::MLLOG "))
    return {entry["key"]: entry["value"] for entry in map(json.loads, lines)}


def _read_lateness(path: Path) -> NDArray[np.int64]:
    """Nanoseconds from scheduled to issued, (n,), by LoadGen's clock, in the order of issue."""
    found = _LATENESS.findall(path.read_text())
    return np.array([int(late) for _, late in sorted(found, key=lambda pair: int(pair[0]))])


class Waiting:
    """An engine that takes a fixed time and computes nothing."""

    once: frozenset[str] = frozenset()

    def __init__(self, milliseconds: float) -> None:
        self._seconds, self._scores = milliseconds / 1e3, np.zeros(1, np.float32)

    def run(self, inputs: Mapping[str, Any]) -> NDArray[np.float32]:
        time.sleep(self._seconds)
        return self._scores


def clocks(submit: Submit, requests: Requests, asked: Any, service_ms: float) -> tuple[Driven, list[Agreement]]:
    """Return the run, and the agreement of both clocks on each percentile.

    Two runs of the engine that waits, one before and one after, measure what the clocks cost: the larger cost counts.
    """
    with Pool(PLACEMENT, lambda instance_group: Waiting(service_ms)) as waiting:
        before = drive(waiting.submit, requests, asked)
        run = drive(submit, requests, asked)
        after = drive(waiting.submit, requests, asked)
    found = []
    for percent in PERCENTS:
        cost = max(0.0, *(null.theirs_ms[percent] - at_rank(null.ours_ms, percent) for null in (before, after)))
        found.append(Agreement(percent, run.theirs_ms[percent], at_rank(run.ours_ms, percent), cost))
    return run, found


def generators(submit: Submit, requests: Requests, rate_rps: float, seconds: float, rounds: int) -> list[Round]:
    """Compare LoadGen's Server scenario with our open loop, turn by turn on the same requests."""
    found = []
    for number in range(rounds):
        theirs = drive(submit, requests, server(rate_rps, seconds, number))
        chosen = [requests[i] for i in theirs.numbers]
        settle()
        monitor = InterferenceMonitor()
        ours = open_loop(submit, chosen, gaps(Traffic(), rate_rps, len(chosen), number))
        disturbed = theirs.disturbed or monitor.stop().busy
        found.append(Round(theirs.verdict, theirs.theirs_ms[50], at_rank(ours.latency_ms, 50), disturbed))
    return found


def capacity(submit: Submit, requests: Requests) -> float:
    """Requests a second; on a busy machine too, since both sides get the same rate."""
    settle()
    return float(np.median([saturated(submit, requests, 2, 0.1) for _ in range(5)]))


def report(submit: Submit, requests: Requests, seconds: float, rounds: int) -> None:
    service = float(np.median(closed_loop(submit, requests)))
    rate = LOAD * capacity(submit, requests)
    print(f"service p50 {service:.3f} ms, {rate:.0f} requests/s offered, {LOAD:.0%} of what it can answer")
    for name, asked in (
        ("SingleStream", single_stream(service, seconds)),
        ("Server", server(rate, seconds)),
    ):
        run, agreements = clocks(submit, requests, asked, service)
        busy = "; the machine was busy with something else" if run.disturbed else ""
        print(f"{name}: {len(run.ours_ms)} queries, LoadGen says {run.verdict}{busy}")
        print(*agreements, sep="\n", flush=True)
    print(judged(generators(submit, requests, rate, seconds, rounds)))


def judged(rounds: Sequence[Round]) -> str:
    theirs, ours = (np.array([getattr(r, deployment) for r in rounds]) for deployment in ("theirs_ms", "ours_ms"))
    ratio, (low, high) = percentile_interval(ours / theirs, 50)
    inside = max(1 - low, high - 1) <= GENERATORS_AGREE
    outside = low > 1 + GENERATORS_AGREE or high < 1 - GENERATORS_AGREE
    return (
        f"generators: {len(rounds)} rounds, {sum(r.verdict == 'VALID' for r in rounds)} VALID, "
        f"{sum(r.disturbed for r in rounds)} disturbed; p50 LoadGen {np.median(theirs):.4f} ms, ours "
        f"{np.median(ours):.4f} ms, ours of LoadGen's {ratio:.3f} [{low:.3f}, {high:.3f}], "
        f"within {GENERATORS_AGREE:.0%}: {VERDICTS[inside + (not outside)]}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each run of LoadGen")
    parser.add_argument("--rounds", type=int, default=12, help="LoadGen and ours in turns")
    options = parser.parse_args()
    if options.rounds < (fewest := fewest_samples(50)):
        parser.error(f"An interval needs {fewest} rounds or more, but got {options.rounds}.")
    requests = lognormal_requests(300, seed=1)
    with tempfile.TemporaryDirectory() as folder:
        model = baseline_model(Path(folder))
        with quiet(), Pool.open(model, PLACEMENT) as pool:
            warm_up(pool.submit, requests, PLACEMENT)
            report(pool.submit, requests, options.seconds, options.rounds)


if __name__ == "__main__":
    main()
