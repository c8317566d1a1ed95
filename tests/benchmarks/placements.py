"""Best placements by engine, threads, replicas and rows; with a router; with the user's side once.

    python tests/benchmarks/placements.py [--quick]

The table: all placements of one model take turns in short blocks, in a random order. Service p50 is that of one request
at a time, saturated requests/s is with two in flight for each replica; both are medians over blocks with their 95%
interval by order statistics. `*` is the best of its rows, `~` one whose interval meets the best's.

The router: ONNX Runtime takes small requests and OpenVINO large ones, above the number of rows that the table says,
for the model that it says should gain most. It is paired with either engine alone, which has as many replicas as there
are cores, of one thread each; the router has as many of each. The rate is a share of what one replica of the better
engine answers one by one, which leaves the generator room.

The user's side once: its graph beside the plain one, one request at a time, paired in blocks.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


from objectives.measure.benchmark import measure_visit
from objectives.measure.deployment import load_target, quiet, warm_up
from objectives.measurement.arrivals import Traffic
from objectives.measurement.latency import Load, Window
from objectives.measurement.load_generator import closed_loop, saturated, settle
from objectives.measurement.load_target import LoadTarget
from objectives.measurement.recording import Recording
from objectives.measurement.statistics import Floats, fewest_samples, percentile_interval
from objectives.recommenders.families.dcn_v2 import BASELINE, Sizes
from objectives.serving.devices import cores_allowed
from objectives.serving.pool import Pool
from spaces.techniques.placement import InstanceGroup, Placement, Route
from spaces.techniques.quantization import Precision
from tests.benchmarks.models import (
    FP32,
    INT8,
    ONE_THREAD,
    SMALL_STUDENT,
    STUDENT,
    Requests,
    lognormal_requests,
    request,
    write_model,
)
from tests.benchmarks.pairing import paired_service

ROWS = (20, 200, 1000)
SMALL, LARGE = "onnxruntime", "openvino"
LOAD = 0.6


@dataclass(frozen=True)
class Variant:
    name: str
    sizes: Sizes
    precision: Precision = FP32


VARIANTS = (
    Variant("baseline fp32", BASELINE),
    Variant("baseline int8-dynamic", BASELINE, INT8),
    Variant("student d=8 fp32", SMALL_STUDENT),
)
ONCE = (Variant("student d=8", SMALL_STUDENT), Variant("student d=16", STUDENT), Variant("baseline", BASELINE))


@dataclass(frozen=True)
class Length:
    """Durations: blocks, requests and seconds of each, for the table; pairs of blocks; the router's window."""

    blocks: int
    calls: int
    seconds: float
    pairs: int
    window: Window


FULL = Length(12, 10, 0.06, 40, Window(80, 60, 6))
QUICK = Length(fewest_samples(50), 3, 0.01, 20, Window(20, 20, 5))


@dataclass(frozen=True, eq=False)
class Cell:
    """One placement at one number of rows: (blocks,) milliseconds and requests a second."""

    instance_group: InstanceGroup
    rows: int
    service_ms: Floats
    rps: Floats

    @property
    def name(self) -> str:
        return f"{self.instance_group.engine} {self.instance_group.layout}"


@dataclass(frozen=True)
class Measure:
    """One figure of a cell, and whether less of it is better."""

    name: str
    values: Callable[[Cell], Floats]
    less: bool

    def point(self, cell: Cell) -> float:
        return percentile_interval(self.values(cell), 50)[0]

    def ends(self, cell: Cell) -> tuple[float, float]:
        return percentile_interval(self.values(cell), 50)[1]

    def best(self, cells: Sequence[Cell]) -> Cell:
        return (min if self.less else max)(cells, key=self.point)

    def as_good(self, cell: Cell, best: Cell) -> bool:
        (low, high), (lowest, highest) = self.ends(cell), self.ends(best)
        return low <= highest and lowest <= high

    def told(self, cell: Cell, best: Cell) -> str:
        mark = "*" if cell is best else "~" if self.as_good(cell, best) else ""
        low, high = self.ends(cell)
        return f"{_figure(self.point(cell)):>7} {f'[{_figure(low)}, {_figure(high)}]':<17} {mark}"


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


MEASURES = (
    Measure("service p50 ms", lambda cell: cell.service_ms, True),
    Measure("saturated requests/s", lambda cell: cell.rps, False),
)


def instance_groups() -> list[InstanceGroup]:
    """Both engines on one core, and on all of them as one replica or as many."""
    cores = cores_allowed()
    splits = sorted({(1, 1), (1, cores), (cores, 1)})
    return [InstanceGroup(engine, replicas=r, threads=t) for engine in (SMALL, LARGE) for r, t in splits]


def measure_table(model: Path, length: Length) -> list[Cell]:
    random = np.random.default_rng(0)
    requests = {rows: [request(rows, random) for _ in range(length.calls)] for rows in ROWS}
    all_requests = [r for some in requests.values() for r in some]
    taken: dict[tuple[InstanceGroup, int], list[tuple[float, float]]] = {
        (s, rows): [] for s in instance_groups() for rows in ROWS
    }
    with ExitStack() as stack:
        pools = {
            instance_group: stack.enter_context(Pool.open(model, Placement(instance_group)))
            for instance_group in instance_groups()
        }
        for instance_group, pool in pools.items():
            warm_up(pool.submit, all_requests, Placement(instance_group))
        for _ in range(length.blocks):
            for at in random.permutation(len(taken)):
                instance_group, rows = list(taken)[at]
                taken[instance_group, rows].append(
                    _block(pools[instance_group], requests[rows], 2 * instance_group.replicas, length.seconds)
                )
    return [Cell(instance_group, rows, *np.array(values).T) for (instance_group, rows), values in taken.items()]


def _block(pool: Pool, requests: Requests, outstanding: int, seconds: float) -> tuple[float, float]:
    settle()
    closed_loop(pool.submit, requests[:2])
    service = float(np.median(closed_loop(pool.submit, requests)))
    return service, saturated(pool.submit, requests, outstanding, seconds)


def table(name: str, cells: Sequence[Cell]) -> Iterator[str]:
    yield f"\n{name:<30}{MEASURES[0].name:^30}{MEASURES[1].name:^30}"
    for rows in ROWS:
        among = [cell for cell in cells if cell.rows == rows]
        best = [measure.best(among) for measure in MEASURES]
        for cell in among:
            told = "".join(f"{m.told(cell, b):<30}" for m, b in zip(MEASURES, best, strict=True))
            yield f"{rows:>6}  {cell.name:<20}  {told}".rstrip()
    yield from (f"  {measure.name}: {conclusion(cells, measure)}" for measure in MEASURES)


def conclusion(cells: Sequence[Cell], measure: Measure) -> str:
    """Return the best placement by rows, and between which rows it changes."""
    best, good = [], []
    for rows in ROWS:
        among = [cell for cell in cells if cell.rows == rows]
        best.append(measure.best(among))
        good.append({cell.instance_group for cell in among if measure.as_good(cell, best[-1])})
    told = ", ".join(f"{cell.name} at {cell.rows}" for cell in best)
    changes = [
        f"between {a} and {b}" for (a, one), (b, other) in pairwise(zip(ROWS, good, strict=True)) if not one & other
    ]
    if changes:
        verdict = f"the best changes hands {' and '.join(changes)}"
    elif everywhere := set.intersection(*good):
        names = " and ".join(
            sorted(f"{instance_group.engine} {instance_group.layout}" for instance_group in everywhere)
        )
        verdict = (
            f"no change is shown: as good as the best at all rows {'is' if len(everywhere) == 1 else 'are'} {names}"
        )
    else:
        verdict = "the best changes, between which rows is not shown"
    engines = {instance_group.engine for some in good for instance_group in some}
    return f"{told}; {verdict}" + (f"; {engines.pop()} wins everywhere" if len(engines) == 1 else "")


def alone(engine: str) -> InstanceGroup:
    return InstanceGroup(engine, replicas=cores_allowed(), threads=1)


@dataclass(frozen=True)
class Prediction:
    """The best threshold for a router, and its mean service time over that of the better engine alone: below 1 helps.

    crosses: whether each engine is the faster one somewhere
    """

    above_rows: int
    ratio: float
    crosses: bool


def predict(cells: Sequence[Cell], sizes: NDArray[np.int64]) -> Prediction:
    """Predict from the service times of one thread, on straight lines in logarithms between the rows of the table."""
    distinct, counts = np.unique(sizes, return_counts=True)
    small, large = (_curve(cells, engine, distinct) for engine in (SMALL, LARGE))
    routed = [small[: i + 1] @ counts[: i + 1] + large[i + 1 :] @ counts[i + 1 :] for i in range(len(distinct) - 1)]
    at = int(np.argmin(routed))
    better = min(small @ counts, large @ counts)
    return Prediction(
        int(distinct[at]), float(routed[at] / better), bool((small < large).any() != (small < large).all())
    )


def _curve(cells: Sequence[Cell], engine: str, sizes: NDArray[np.int64]) -> Floats:
    """The curve in milliseconds, (sizes,)."""
    known = [cell for cell in cells if cell.instance_group == alone(engine)]
    logs = [np.log(MEASURES[0].point(cell)) for cell in known]
    result: Floats = np.exp(np.interp(np.log(sizes), np.log([cell.rows for cell in known]), logs))
    return result


def router(models: Mapping[str, Path], tables: Mapping[str, Sequence[Cell]], window: Window) -> Iterator[str]:
    requests = lognormal_requests(300, seed=1)
    sizes = np.array([len(r["item"]) for r in requests])
    predictions = {name: predict(cells, sizes) for name, cells in tables.items()}
    yield f"\nrouter: {SMALL} up to a number of rows, {LARGE} above"
    for name, p in predictions.items():
        why = "" if p.crosses else ", though one engine is the faster at every size"
        yield f"  {name}: best above {p.above_rows} rows, predicted {p.ratio:.3f} of the better engine{why}"
    name = min(predictions, key=lambda each: predictions[each].ratio)
    yield from routed(name, models[name], predictions[name].above_rows, requests, window)


def routed(name: str, model: Path, above_rows: int, requests: Requests, window: Window) -> Iterator[str]:
    placements = {engine: Placement(alone(engine)) for engine in (SMALL, LARGE)}
    placements["router"] = Placement(alone(SMALL), route=Route(above_rows, alone(LARGE)))
    with ExitStack() as stack:
        pools = {each: stack.enter_context(Pool.open(model, p)) for each, p in placements.items()}
        for each, pool in pools.items():
            warm_up(pool.submit, requests, placements[each])
        on_one_thread = stack.enter_context(Pool.open(model, ONE_THREAD))
        warm_up(on_one_thread.submit, requests, ONE_THREAD)
        pace_target = load_target(on_one_thread, ONE_THREAD, requests)
        rates = _one_by_one(pools, requests)
        told = ", ".join(f"{each} {rps:.0f}" for each, rps in rates.items())
        yield f"  {name}, above {above_rows} rows; one by one it answers a second: {told}"
        for engine in (SMALL, LARGE):
            share = LOAD * max(rates[SMALL], rates[LARGE]) / rates[engine]
            targets = tuple(load_target(pools[each], placements[each], requests) for each in ("router", engine))
            told = _paired(targets, pace_target, requests, Load(Traffic(), share, 95, None), window)
            yield f"  of {engine} alone: {told}"


def _one_by_one(pools: Mapping[str, Pool], requests: Requests) -> dict[str, float]:
    """Requests a second, the median of five blocks in turns."""
    found: dict[str, list[float]] = {each: [] for each in pools}
    for _ in range(5):
        for each, pool in pools.items():
            settle()
            found[each].append(1e3 / float(np.mean(closed_loop(pool.submit, requests[:100]))))
    return {each: float(np.median(rates)) for each, rates in found.items()}


def _paired(
    targets: tuple[LoadTarget, ...], pace_target: LoadTarget, requests: Requests, load: Load, window: Window
) -> str:
    visits = tuple(
        measure_visit(targets, pace_target, requests, load, window, seed)[0] for seed in range(window.visits)
    )
    found, _ = Recording(visits, load.slo_ms, load.percent, 0).summarize()
    low, high = found.p95_ratio_interval
    verdict = "the router is faster" if high < 1 else "the router is slower" if low > 1 else "no difference is shown"
    return f"p95 ratio {found.p95_ratio:.3f} [{low:.3f}, {high:.3f}] at {found.rate_rps:.0f} requests/s: {verdict}"


def user_once(folder: Path, length: Length) -> Iterator[str]:
    yield "\nthe user's side once a request: service p50 of the plain graph's, one thread of ONNX Runtime"
    random = np.random.default_rng(0)
    requests = {rows: [request(rows, random) for _ in range(length.calls)] for rows in ROWS}
    for variant in ONCE:
        plain, once = (
            write_model(folder / f"{variant.name} {on}", variant.sizes, user_once=on) for on in (False, True)
        )
        instance_group = InstanceGroup(threads=1)
        with (
            Pool.open(plain, Placement(instance_group)) as theirs,
            Pool.open(once, Placement(instance_group, user_once=True)) as ours,
        ):
            for rows, some in requests.items():
                ratio, (low, high) = paired_service(ours, theirs, some, length.pairs)
                verdict = "faster" if high < 1 else "slower" if low > 1 else "no difference is shown"
                yield f"  {variant.name:<14}{rows:>6} rows  {ratio:.3f} [{low:.3f}, {high:.3f}]  {verdict}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="too short to decide anything")
    length = QUICK if parser.parse_args().quick else FULL
    print(f"{cores_allowed()} cores, {length.blocks} blocks of {length.calls} requests and {length.seconds:g} s")
    with tempfile.TemporaryDirectory() as scratch, quiet():
        folder = Path(scratch)
        models = {v.name: write_model(folder / v.name, v.sizes, v.precision) for v in VARIANTS}
        tables = {}
        for name, model in models.items():
            tables[name] = measure_table(model, length)
            print(*table(name, tables[name]), sep="\n", flush=True)
        for part in (router(models, tables, length.window), user_once(folder, length)):
            for line in part:
                print(line, flush=True)


if __name__ == "__main__":
    main()
