"""Judge and time: what a model file is worth and costs. Run as the meter process: `python -m objectives.measure`.

Loads no torch and no user code: held-out rows and requests are plain arrays that a builder wrote.
"""

from __future__ import annotations

import gc
import itertools
import json
import subprocess
import sys
import time as clock
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from objectives.jobs import serve
from objectives.measurement.footprint import cpu_seconds_per_1000, peak_memory_bytes
from objectives.measurement.latency import Timings, Window, check_calm, time_side_by_side
from objectives.measurement.profile import median_request, profile_model
from objectives.measurement.quality import paired_quality
from objectives.measurement.recording import Recording, Search, write_recording
from objectives.measurement.roofline import measure_roofline
from objectives.measurement.schedule import Traffic
from objectives.measurement.statistics import percentile
from objectives.measurement.strain import DisturbedError
from objectives.measurement.throughput import Pace, Probe, Slowness, open_loop_probe, saturation, search_rates
from objectives.measurement.traffic import BehindError, Request, Submit, precise_sleep, saturated, settle
from objectives.record import Artifact, Footprint, Latency, Quality, Throughput
from objectives.serving.devices import engine_version
from objectives.serving.engines import PREPARED_BY_SIZE, Engine, open_replica
from objectives.serving.pool import Pool
from objectives.store import make_once
from spaces.anatomy import Group
from spaces.canonical import digest, from_plain, to_plain
from spaces.placement import Placement, Seat

_CHUNK_ROWS = 4096
_TRIES = 3
_WEIGH_SECONDS = 100
_SWITCH_SECONDS = 5e-5


@dataclass(frozen=True)
class Arm:
    """One model file and how it is run."""

    model: str
    placement: Placement
    compute: str


@dataclass(frozen=True)
class Load:
    """How the arms are loaded: a share of what the baseline's replica answers one by one, its utilisation, in the very
    run, since machines differ from hour to hour; the SLO's percentile, and its milliseconds or None for the baseline's
    own."""

    traffic: Traffic
    share: float
    percent: int
    slo_ms: float | None


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
    """Quality on held-out rows through the engine that will serve; and whether the scores were in the cache.

    Where requests are routed by size, the engine that loses more speaks for both.
    """
    inputs, labels, groups = _held_out(holdout, part)
    theirs, _ = _scores(cache, holdout, part, inputs, *baseline)
    found = []
    artifact, arm = candidate
    for seat in arm.placement.seats:
        ours, reused = _scores(cache, holdout, part, inputs, artifact, replace(arm, placement=_alone(arm, seat)))
        found.append((paired_quality(metric, ours, theirs, labels, groups, seed, confidence), reused))
    return max(found, key=lambda pair: pair[0].loss)


def time(
    holdout: Path, candidate: Arm, baseline: Arm, load: Load, window: Window, seed: int, recording: Path
) -> tuple[Latency, Throughput]:
    """Latency at the study's load and throughput under the SLO, both beside the baseline; the raw timings go to a file.

    Raises:
        DisturbedError: the machine was busy with something else, several times over.
        BehindError: the generator was behind its schedule, several times over.
    """
    requests = _requests(holdout)
    with quiet(), _open(candidate) as ours, _open(baseline) as theirs:
        warm_up(ours.submit, requests, candidate.placement)
        warm_up(theirs.submit, requests, baseline.placement)
        recorded = _record((ours, candidate), (theirs, baseline), requests, load, window, seed)
    judged = recorded.judged()
    write_recording(recorded, recording)
    return judged


def weigh(holdout: Path, artifact: Artifact, arm: Arm) -> Footprint:
    """Bytes, peak memory and CPU time of a fresh process that holds this arm alone.

    Raises:
        RuntimeError: the process failed, with its last line.
    """
    plain = json.dumps({"holdout": str(holdout), "arm": to_plain(arm)})
    command = [sys.executable, "-m", "objectives.measure", "weigh"]
    try:
        done = subprocess.run(command, input=plain, capture_output=True, text=True, timeout=_WEIGH_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"The footprint could not be measured within {_WEIGH_SECONDS} s.") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise RuntimeError(f"The footprint could not be measured: {lines[-1]}")
    found = json.loads(done.stdout)
    return Footprint(artifact.model_bytes, found["peak_memory_bytes"], found["cpu_seconds_per_1000"])


def _weigh_here(holdout: str, arm: Any) -> dict[str, float]:
    """The child's side of `weigh`."""
    requests, of = _requests(Path(holdout)), from_plain(Arm, arm)
    with quiet(), _open(of) as pool:
        warm_up(pool.submit, requests, of.placement)
        cpu = cpu_seconds_per_1000(pool.submit, requests, of.placement.replicas)
        return {"peak_memory_bytes": peak_memory_bytes(), "cpu_seconds_per_1000": cpu}


def timed(
    ours: Submit, theirs: Submit, requests: list[Request], load: Load, window: Window, seed: int
) -> tuple[Timings, Pace]:
    """Both arms side by side, anew where something disturbed them.

    Returns:
        Timings, and the baseline's pace, which can be asked again.

    Raises:
        DisturbedError: the machine was busy with something else, several times over.
        BehindError: the generator was behind its schedule, several times over.
    """
    start, attempt = clock.monotonic(), 0
    while True:
        attempt += 1
        try:
            settle()
            pace = Pace(theirs, requests)
            timings = time_side_by_side(
                ours, theirs, requests, load.traffic, partial(_rate, pace, load.share), window, seed + attempt
            )
            check_calm(timings, window.blocks)
            return timings, pace
        except (DisturbedError, BehindError) as error:
            # A generator that is behind a model as fast as this stays behind; a neighbour may go.
            patience = window.patience_seconds if isinstance(error, DisturbedError) else 0.0
            if attempt >= _TRIES and clock.monotonic() - start >= patience:
                raise type(error)(f"{error} ({attempt} times over)") from error


def _rate(pace: Pace, share: float) -> float:
    """Requests per second that are a share of what is answered one by one at the moment: in an open loop the
    utilisation. A share of what is answered when saturated would be more, since then nothing has to wake up."""
    return share * 1000 / pace()


def _record(
    candidate: tuple[Pool, Arm],
    baseline: tuple[Pool, Arm],
    requests: list[Request],
    load: Load,
    window: Window,
    seed: int,
) -> Recording:
    """The search for rates comes after the timing, on a machine that may be another by then: it goes by the
    baseline's pace, and its rates and latencies are those at the pace of the timing."""
    (ours, _), (theirs, their_arm) = candidate, baseline
    timings, pace = timed(ours.submit, theirs.submit, requests, load, window, seed)
    kept = timings.kept()
    rate = float(np.median(kept.rate_rps))

    def slowness() -> float:
        settle()
        now = pace() / (load.share * 1000 / rate)
        settle()
        return now

    most = saturation(theirs.submit, requests, their_arm.placement.replicas, slowness)
    limit = percentile(kept.baseline, load.percent) if load.slo_ms is None else load.slo_ms
    first = Probe(rate, kept.candidate)
    searched = Search((), most)
    if load.slo_ms is not None:
        searched = _search(*baseline, Probe(rate, kept.baseline), requests, load, limit, window.probes, seed, slowness)
    return Recording(
        timings=timings,
        slo_ms=load.slo_ms,
        percent=load.percent,
        seed=seed,
        candidate=_search(*candidate, first, requests, load, limit, window.probes, seed, slowness),
        baseline=searched,
    )


def _search(
    pool: Pool,
    arm: Arm,
    first: Probe,
    requests: list[Request],
    load: Load,
    limit_ms: float,
    probes: int,
    seed: int,
    slowness: Slowness,
) -> Search:
    most = saturation(pool.submit, requests, arm.placement.replicas, slowness)

    def probe(rate_rps: float) -> Probe:
        return open_loop_probe(pool.submit, requests, load.traffic, rate_rps, seed, slowness)

    return Search(search_rates(probe, first, float(most.mean()), limit_ms, load.percent, probes), most)


def _open(arm: Arm) -> Pool:
    return Pool.open(Path(arm.model), arm.placement, arm.compute)


def _alone(arm: Arm, seat: Seat) -> Placement:
    """One replica of a seat, as far as its scores depend on it."""
    return Placement(Seat(seat.engine, seat.device), lookup=arm.placement.lookup, user_once=arm.placement.user_once)


def warm_up(submit: Submit, requests: Sequence[Request], placement: Placement) -> None:
    """Buffers grow with the largest request; an engine that prepares kernels by size gets every size once, as it would
    in its first minutes of service, any other a few."""
    sizes = {len(next(iter(r.values()))): r for r in requests}
    ordered = sorted(sizes, reverse=True)
    places = [place for place in (*placement.seats, placement.lookup) if place is not None]
    by_size = any({place.engine, place.device.partition(":")[0]} & PREPARED_BY_SIZE for place in places)
    for rows in ordered if by_size else ordered[:: max(1, len(ordered) // 20)]:
        saturated(submit, [sizes[rows]], placement.replicas, seconds=0.0)


@contextmanager
def quiet() -> Iterator[None]:
    """While the clock runs: threads wake on time, a finished replica gets the interpreter at once (the default wait of
    5 ms would show as latency), and no garbage is collected."""
    before = sys.getswitchinterval()
    precise_sleep()
    sys.setswitchinterval(_SWITCH_SECONDS)
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        sys.setswitchinterval(before)


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
    seat, lookup = arm.placement.seat, arm.placement.lookup
    versions = [engine_version(place.engine) for place in (seat, lookup) if place is not None]
    key = digest(holdout.name, part, artifact.key, seat, lookup, versions, arm.compute)[:20]
    folder = cache / "scores" / key

    def write(into: Path) -> None:
        engine = open_replica(Path(arm.model), seat, lookup, arm.compute)
        np.save(into / "scores.npy", run_rows(engine, inputs))

    reused = make_once(folder, write)
    scores: NDArray[np.float32] = np.load(folder / "scores.npy")
    return scores, reused


def run_rows(engine: Engine, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """Scores of any rows, in their order; what an engine takes once a request is the same in each part it is given."""
    rows = len(next(iter(inputs.values())))
    order, starts = np.arange(rows), np.arange(0, rows, _CHUNK_ROWS)
    if engine.once:
        users = np.stack([inputs[name] for name in sorted(engine.once)], axis=1)
        _, user = np.unique(users, axis=0, return_inverse=True)
        order = np.argsort(user, kind="stable")
        starts = np.flatnonzero(np.diff(user[order], prepend=-1))
    scores = np.empty(rows, dtype=np.float32)
    for start, end in itertools.pairwise([*starts.tolist(), rows]):
        part = order[start:end]
        scores[part] = engine.run({name: values[part] for name, values in inputs.items()})
    return scores


def _main() -> None:
    if sys.argv[1:] == ["weigh"]:
        sys.stdout.write(json.dumps(_weigh_here(**json.loads(sys.stdin.read()))))
        return

    def judge_job(progress: Any, candidate: Any, baseline: Any, cache: str, holdout: str, **options: Any) -> Any:
        quality, reused = judge(
            cache=Path(cache), holdout=Path(holdout), candidate=_pair(candidate), baseline=_pair(baseline), **options
        )
        return {"quality": to_plain(quality), "reused": reused}

    def time_job(
        progress: Any,
        holdout: str,
        artifact: Any,
        candidate: Any,
        baseline: Any,
        load: Any,
        window: Any,
        recording: str,
        weighed: bool,
        **options: Any,
    ) -> Any:
        of = from_plain(Artifact, artifact)
        # First: a recording belongs to a timing that nothing behind it can undo.
        footprint = weigh(Path(holdout), of, from_plain(Arm, candidate)) if weighed else Footprint(of.model_bytes)
        latency, throughput = time(
            holdout=Path(holdout),
            candidate=from_plain(Arm, candidate),
            baseline=from_plain(Arm, baseline),
            load=from_plain(Load, load),
            window=from_plain(Window, window),
            recording=Path(recording),
            **options,
        )
        return {"latency": to_plain(latency), "throughput": to_plain(throughput), "footprint": to_plain(footprint)}

    def profile_job(progress: Any, model: str, groups: Any, holdout: str) -> Any:
        request = median_request(_requests(Path(holdout)))
        with quiet():
            found = profile_model(Path(model), [from_plain(Group, g) for g in groups], request)
            roofline = measure_roofline(working_set=sum(group.weight_bytes for group in found.groups))
        return {"profile": to_plain(found), "roofline": to_plain(roofline)}

    serve({"judge": judge_job, "time": time_job, "profile": profile_job})


def _pair(plain: Any) -> tuple[Artifact, Arm]:
    return from_plain(Artifact, plain["artifact"]), from_plain(Arm, plain["arm"])


if __name__ == "__main__":
    _main()
