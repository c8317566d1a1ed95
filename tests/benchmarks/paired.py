"""Does the paired measurement hold what its intervals promise? The baseline against itself, and against one that is 10%
slower, both while another process burns a core at random times.

    python tests/benchmarks/paired.py [--repeats 40] [--folder DIR]

Each repeat's raw timings are kept in the folder; the coverage is reckoned from those, resampled. Run again on the same
folder, it goes on with the repeats that are not there yet.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from objectives.arms import warm_up
from objectives.measurement.latency import Timings, Window, summarise
from objectives.measurement.recording import Recording, Search, read_recording, write_recording
from objectives.measurement.schedule import Traffic
from objectives.measurement.statistics import ratio_of_percentiles
from objectives.measurement.strain import DisturbedError
from objectives.measurement.traffic import BehindError, precise_sleep
from objectives.record import Latency
from objectives.serving.engines import Engine, open_engine
from objectives.serving.pool import Pool
from objectives.timing import Load, timed
from spaces.placement import Placement, Seat
from tests.benchmarks.models import baseline_model, lognormal_requests

SLOWER = 0.1
CONFIRM = Window(blocks=120)  # what `leanrec choose` looks through
RESAMPLES = 500


class Slower:
    """An engine that takes a tenth longer by a busy wait, which leaves the interpreter to others."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.once = engine.once

    def run(self, inputs: Mapping[str, Any]) -> Any:
        start = time.perf_counter_ns()
        scores = self._engine.run(inputs)
        end = time.perf_counter_ns()
        until = end + int(SLOWER * (end - start))
        while time.perf_counter_ns() < until:
            time.sleep(0)
        return scores


@contextlib.contextmanager
def burning(seed: int) -> Iterator[None]:
    """Another process that burns one core: on for 0.1 to 2 seconds and off for 0.5 to 6 by turns, a quarter of the
    time."""
    code = (
        f"import random, time; r = random.Random({seed})\n"
        "while True:\n"
        "    end = time.monotonic() + r.uniform(0.1, 2)\n"
        "    while time.monotonic() < end: pass\n"
        "    time.sleep(r.uniform(0.5, 6))\n"
    )
    burner = subprocess.Popen([sys.executable, "-c", code])
    try:
        yield
    finally:
        burner.kill()
        burner.wait()


def repeat(model: Path, slower: bool, seed: int, requests: list[Any]) -> Timings:
    def engine(seat: Seat) -> Engine:
        return open_engine(seat.engine, model, seat.device, seat.threads)

    placement = Placement()
    load = Load(Traffic(), 0.4, 95, None)
    with (
        Pool(placement, lambda seat: Slower(engine(seat)) if slower else engine(seat)) as ours,
        Pool(placement, engine) as theirs,
    ):
        for pool in (ours, theirs):
            warm_up(pool.submit, requests, placement)
        timings, _ = timed(ours.submit, theirs.submit, requests, load, CONFIRM, seed)
    return timings


def run(name: str, model: Path, slower: bool, repeats: int, folder: Path, burn: bool) -> list[Path]:
    requests = lognormal_requests(300, seed=1)
    files = []
    for number in range(repeats):
        path, invalid = folder / f"{name}-{number}.npz", folder / f"{name}-{number}.invalid"
        if path.exists():
            files.append(path)
        if path.exists() or invalid.exists():
            continue
        start = time.monotonic()
        with burning(random.Random(f"{name}{number}").randrange(10**6)) if burn else contextlib.nullcontext():
            try:
                timings = repeat(model, slower, 1000 * number, requests)
            except (DisturbedError, BehindError) as error:
                print(f"{name} {number:>2}: invalid after {time.monotonic() - start:.0f} s: {error}", flush=True)
                folder.mkdir(parents=True, exist_ok=True)
                invalid.write_text(str(error))
                continue
        nothing = Search((), np.ones(1))
        write_recording(Recording(timings, None, 95, number, nothing, nothing), path)
        files.append(path)
        found = summarise(timings, number)
        print(f"{name} {number:>2}: {_line(found)} in {time.monotonic() - start:.0f} s", flush=True)
    return files


def _line(found: Latency) -> str:
    low, high = found.p95_ratio_interval
    service = found.service_p50_ratio_interval
    return (
        f"p95 ratio {found.p95_ratio:.3f} [{low:.3f}, {high:.3f}], "
        f"service p50 ratio {found.service_p50_ratio:.3f} [{service[0]:.3f}, {service[1]:.3f}], "
        f"{found.repeated_blocks} pairs repeated, lag p95 {found.lag_p95_ms:.3f} ms"
    )


def coverage(files: list[Path], seed: int = 0) -> float:
    """Of A/A intervals around 1, over resamples of the recorded pairs of blocks in which the arms of each pair change
    places at random: so the true ratio is 1 by construction."""
    random_ = np.random.default_rng(seed)
    recorded = [read_recording(path).timings.kept() for path in files]
    covered = []
    for _ in range(RESAMPLES):
        timings = recorded[random_.integers(len(recorded))]
        picks = random_.integers(0, len(timings.candidate), len(timings.candidate))
        swap = random_.random(len(picks)) < 0.5
        ours, theirs = timings.candidate[picks], timings.baseline[picks]
        a, b = np.where(swap[:, None], theirs, ours), np.where(swap[:, None], ours, theirs)
        _, (low, high) = ratio_of_percentiles(a, b, 95, int(random_.integers(2**31)))
        covered.append(low <= 1 <= high)
    return float(np.mean(covered))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--calm", action="store_true", help="without the process that burns a core")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="paired-"))
    precise_sleep()
    sys.setswitchinterval(5e-5)
    model = baseline_model(folder)
    same = run("same", model, False, options.repeats, folder / "aa", not options.calm)
    planted = run("planted", model, True, options.repeats, folder / "planted", not options.calm)
    for name, files in (("same", same), ("planted", planted)):
        judged = [summarise(r.timings, r.seed) for r in map(read_recording, files)]
        print(f"\n{name}: {len(files)} valid of {options.repeats}")
        for what, points, intervals in (
            ("p95 ratio", [j.p95_ratio for j in judged], [j.p95_ratio_interval for j in judged]),
            (
                "service p50 ratio",
                [j.service_p50_ratio for j in judged],
                [j.service_p50_ratio_interval for j in judged],
            ),
        ):
            covers = np.mean([low <= 1 <= high for low, high in intervals])
            print(
                f"  {what}: median {np.median(points):.3f}, points from {min(points):.3f} to {max(points):.3f}; "
                f"{covers:.0%} of the intervals hold 1, {1 - covers:.0%} are clear of it"
            )
    print(f"\nA/A coverage over {RESAMPLES} resamples of the recorded timings: {coverage(same):.3f}")
    print(f"raw timings: {folder}")


if __name__ == "__main__":
    main()
