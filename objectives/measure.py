"""Judge and time: what a model file is worth and costs. Run as the meter process: `python -m objectives.measure`.

Loads no torch and no user code: held-out rows and requests are plain arrays that a builder wrote.
"""

from __future__ import annotations

import gc
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from objectives.jobs import serve
from objectives.measurement.latency import CONFIRM, SCREEN, Timings, Window, summarise, time_side_by_side
from objectives.measurement.quality import paired_quality
from objectives.measurement.statistics import Floats, interval
from objectives.measurement.throughput import Probe, open_loop_probe, saturation, search_rates, slo_rate
from objectives.measurement.traffic import Request, Submit, precise_sleep, settle
from objectives.record import Artifact, Latency, Quality, Throughput
from objectives.serving.devices import engine_version
from objectives.serving.engines import PREPARED_BY_SIZE, open_engine
from objectives.serving.pool import Pool
from objectives.store import make_once
from spaces.canonical import digest, from_plain, to_plain
from spaces.placement import Placement

_CHUNK_ROWS = 4096
# The baseline's service time may change this much within a timing before the timing is repeated.
_DRIFT = 2.0
_TRIES = 3
_PROBES = {"screen": 3, "confirm": 6}
WINDOWS: Mapping[str, Window] = {"screen": SCREEN, "confirm": CONFIRM}


class DisturbedError(RuntimeError):
    """The machine was too busy with something else for a timing to mean anything."""


@dataclass(frozen=True)
class Arm:
    """One model file and how it is run."""

    model: str
    placement: Placement
    compute: str


def judge(
    cache: Path,
    holdout: Path,
    part: str,
    metric: str,
    candidate: tuple[Artifact, Arm],
    baseline: tuple[Artifact, Arm],
    seed: int,
    confidence: float,
) -> tuple[Quality, bool]:
    """Quality on held-out rows through the engine that will serve; and whether the scores were in the cache."""
    inputs, labels, groups = _held_out(holdout, part)
    ours, reused = _scores(cache, holdout, part, inputs, *candidate)
    theirs, _ = _scores(cache, holdout, part, inputs, *baseline)
    return paired_quality(metric, ours, theirs, labels, groups, seed, confidence), reused


def time(
    holdout: Path,
    candidate: Arm,
    baseline: Arm,
    share: float,
    slo_ms: float | None,
    percent: int,
    length: str,
    seed: int,
) -> tuple[Latency, Throughput]:
    """Latency at the study's load and throughput under the SLO, both beside the baseline.

    The load is a share of the baseline's capacity in this very run, since machines differ from hour to hour.

    Raises:
        DisturbedError: the baseline's own time changed while the arms were timed, several times over.
    """
    requests = _requests(holdout)
    with _quiet(), _open(candidate) as ours, _open(baseline) as theirs:
        _warm_up(ours.submit, requests, candidate.placement)
        _warm_up(theirs.submit, requests, baseline.placement)
        for attempt in range(_TRIES):
            settle()
            rate = share * float(np.median(saturation(theirs.submit, requests, baseline.placement.replicas)))
            timings = time_side_by_side(ours.submit, theirs.submit, requests, rate, WINDOWS[length], seed + attempt)
            if (drift := timings.drift()) <= _DRIFT:
                break
        else:
            raise DisturbedError(
                f"The baseline's own time changed {drift:.2g} times within a timing, {_TRIES} times over: "
                "the machine is busy with something else."
            )
        throughput = _throughput(
            ours, theirs, candidate, baseline, requests, timings, rate, slo_ms, percent, _PROBES[length], seed
        )
    return summarise(timings, rate, seed), throughput


def _throughput(
    ours: Pool,
    theirs: Pool,
    candidate: Arm,
    baseline: Arm,
    requests: list[Request],
    timings: Timings,
    rate_rps: float,
    slo_ms: float | None,
    percent: int,
    probes: int,
    seed: int,
) -> Throughput:
    """Without an SLO of its own the limit is the baseline's percentile in this very run, whose rate is the study's."""
    limit = float(np.percentile(timings.baseline, percent)) if slo_ms is None else slo_ms

    def search(pool: Pool, arm: Arm, blocks: Floats) -> tuple[tuple[Probe, ...], Floats]:
        settle()
        most = saturation(pool.submit, requests, arm.placement.replicas)
        probe: Callable[[float], Probe] = lambda rate: open_loop_probe(pool.submit, requests, rate, seed)  # noqa: E731
        return search_rates(probe, Probe(rate_rps, blocks), float(most.mean()), limit, percent, probes), most

    found, most = search(ours, candidate, timings.candidate)
    rate, rates = slo_rate(found, most, timings.baseline if slo_ms is None else slo_ms, percent, seed)
    if slo_ms is None:
        base, bases = rate_rps, np.full(len(rates), rate_rps)
    else:
        base, bases = slo_rate(*search(theirs, baseline, timings.baseline), slo_ms, percent, seed)
    low, high = interval(rates / bases)
    # A point at the highest probe lies at the edge of what the resamples may be.
    around = (min(low, rate / base), max(high, rate / base))
    return Throughput(rate, base, rate / base, around, limit, float(most.mean()))


def _open(arm: Arm) -> Pool:
    return Pool.open(Path(arm.model), arm.placement, arm.compute)


def _warm_up(submit: Submit, requests: list[Request], placement: Placement) -> None:
    """Buffers grow with the largest request; an engine that prepares kernels by size gets every size once, as it would
    in its first minutes of service, any other a few."""
    sizes = {len(next(iter(r.values()))): r for r in requests}
    ordered = sorted(sizes, reverse=True)
    for rows in ordered if placement.engine in PREPARED_BY_SIZE else ordered[:: max(1, len(ordered) // 20)]:
        for answer in [submit(sizes[rows]) for _ in range(placement.replicas)]:
            answer.result()


@contextmanager
def _quiet() -> Iterator[None]:
    """No garbage collection while the clock runs."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@lru_cache(maxsize=2)
def _held_out(holdout: Path, part: str) -> tuple[dict[str, NDArray[Any]], NDArray[np.float32], NDArray[np.int64]]:
    with np.load(holdout / f"{part}.npz") as arrays:
        return _inputs(arrays), arrays["labels"], arrays["groups"]


@lru_cache(maxsize=1)
def _requests(holdout: Path) -> list[Request]:
    with np.load(holdout / "requests.npz") as arrays:
        offsets, inputs = arrays["offsets"], _inputs(arrays)
    return [{k: v[a:b] for k, v in inputs.items()} for a, b in itertools.pairwise(offsets)]


def _inputs(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name.removeprefix("input."): arrays[name] for name in arrays if name.startswith("input.")}


def _scores(
    cache: Path, holdout: Path, part: str, inputs: Mapping[str, NDArray[Any]], artifact: Artifact, arm: Arm
) -> tuple[NDArray[np.float32], bool]:
    engine = arm.placement.engine
    key = digest(holdout.name, part, artifact.key, engine, engine_version(engine), arm.compute)[:20]
    folder = cache / "scores" / key

    def write(into: Path) -> None:
        session = open_engine(engine, Path(arm.model), arm.placement.device, None, arm.compute)
        rows = len(next(iter(inputs.values())))
        parts = [
            session.run({k: v[i : i + _CHUNK_ROWS] for k, v in inputs.items()}) for i in range(0, rows, _CHUNK_ROWS)
        ]
        np.save(into / "scores.npy", np.concatenate(parts))

    reused = make_once(folder, write)
    scores: NDArray[np.float32] = np.load(folder / "scores.npy")
    return scores, reused


def _main() -> None:
    precise_sleep()
    # A finished replica asks for the interpreter lock; the default wait of 5 ms would show as latency.
    sys.setswitchinterval(5e-5)

    def judge_job(progress: Any, candidate: Any, baseline: Any, cache: str, holdout: str, **options: Any) -> Any:
        quality, reused = judge(
            cache=Path(cache), holdout=Path(holdout), candidate=_pair(candidate), baseline=_pair(baseline), **options
        )
        return {"quality": to_plain(quality), "reused": reused}

    def time_job(progress: Any, holdout: str, candidate: Any, baseline: Any, **options: Any) -> Any:
        latency, throughput = time(
            holdout=Path(holdout),
            candidate=from_plain(Arm, candidate),
            baseline=from_plain(Arm, baseline),
            **options,
        )
        return {"latency": to_plain(latency), "throughput": to_plain(throughput)}

    serve({"judge": judge_job, "time": time_job})


def _pair(plain: Any) -> tuple[Artifact, Arm]:
    return from_plain(Artifact, plain["artifact"]), from_plain(Arm, plain["arm"])


if __name__ == "__main__":
    _main()
