"""Requests per second of several servers at an equal p99, side by side on the same ONNX models.

    python tests/benchmarks/servers.py ENVIRONMENTS [--p99-ms 25] [--rounds 3] [--minutes 20] [--servers kserve ...]

`leanrec serve`, KServe's Python server, LitServe, Ray Serve and `mlflow models serve`, each as its documentation writes
it (`tests/benchmarks/served/`), with the newest versions of their packages in virtual environments that are made in the
folder ENVIRONMENTS. The models are DCN-V2 in fp32, the built-in baseline and a student, by ONNX Runtime with one
thread; one process or replica each, ours inline. Requests have 200 rows of eight inputs, as binary tensors where the
server takes them.

The client is that of `leanrec bench --url`: an open loop of Poisson arrivals, on the same machine.
Where a server does not speak the Open Inference Protocol, the same client sends other bytes, encoded beforehand. Each
visit starts a server, compares its scores with ONNX Runtime's here, measures one request at a time and the rate
when saturated, and searches for the rate at which p99 meets the limit, as a study does for an SLO. Servers
take turns, the order alternates with the rounds, and only one runs at a time. Intervals (95%) resample the segments of
all visits; the column of visits shows what the hour adds.

A round of five servers and two models takes about five minutes on two cores: a further one is begun only where it ends
within --minutes by the time of those before. --check starts each server, compares its scores, and measures nothing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from objectives.arrays import Arrays
from objectives.measure.deployment import quiet
from objectives.measurement.arrivals import Traffic
from objectives.measurement.latency import Load, Window
from objectives.measurement.load_target import LiveTarget
from objectives.measurement.statistics import RESAMPLES, Floats, interval, percentile
from objectives.measurement.throughput import (
    RateSearch,
    measure_capacity,
    rate_under_slo,
    resampled_rates,
    search_rates,
)
from objectives.records import InputSpec
from objectives.serving.bundle import write_bundle
from objectives.serving.engines import open_engine
from spaces.candidate import Candidate
from spaces.techniques.placement import InstanceGroup, Placement
from tests.benchmarks.served.environments import environment
from tests.benchmarks.served.kinds import KINDS, Client, Model, serving

PERCENT = 99
PLACEMENT = Placement(InstanceGroup(threads=1), inline=True)
_REQUESTS, _WARM_UP, _SERVICE_BLOCKS = 40, 100, 5
# More than the limit allows of a slow server's requests would take too long; p99 is that of all visits together.
_WINDOW = Window(probes=4, probe_requests=400)
_OUTSTANDING = 6


@dataclass(frozen=True)
class Visit:
    """A server measured once, and the rate at which it keeps the limit in this visit."""

    search: RateSearch
    rate_rps: float


def write_models(folder: Path, names: Sequence[str], rows: int) -> tuple[dict[str, Model], list[Arrays]]:
    """Write a bundle of each model, and return them with the requests."""
    from objectives.recommenders.families.dcn_v2 import BASELINE
    from tests.benchmarks.models import FIELDS, STUDENT, USER_FIELDS, request, write_model

    random = np.random.default_rng(0)
    requests: list[Arrays] = [dict(request(rows, random)) for _ in range(_REQUESTS)]
    inputs = [InputSpec(n, "int64", (), size, "user" if n in USER_FIELDS else "item") for n, size in FIELDS.items()]
    models = {}
    for name in names:
        file = write_model(folder / f"{name}-model", {"student": STUDENT, "baseline": BASELINE}[name])
        bundle = folder / name
        write_bundle(bundle, name, file, Candidate(placement=PLACEMENT), {}, inputs, "", requests[0])
        graph = open_engine("onnxruntime", file, threads=1)
        models[name] = Model(bundle, tuple(graph.takes), graph.gives[0])
    return models, requests


def check_scores(client: Client, model: Model, request: Arrays) -> None:
    """Compare a server's scores with the engine's here; AssertionError where they differ."""
    expected = open_engine("onnxruntime", model.file, threads=1).run(request)
    np.testing.assert_allclose(client.submit(request).result().ravel(), expected.ravel(), rtol=1e-4, atol=1e-5)


def measure(client: Client, process: int, requests: list[Arrays], limit_ms: float, seed: int) -> Visit:
    """Measure a server that is ready."""
    target = LiveTarget(client.submit, 1, _OUTSTANDING, True, children=(process,))
    target.closed_loop([requests[i % len(requests)] for i in range(_WARM_UP)])
    service = np.array([target.closed_loop(requests) for _ in range(_SERVICE_BLOCKS)])
    search = RateSearch((), measure_capacity([target], requests, 0)[:, 0], service)
    load = Load(Traffic(), 0.5, PERCENT, limit_ms)
    (found,) = search_rates([target], [search], requests, load, limit_ms, _WINDOW, seed)
    return Visit(found, rate_under_slo(found, limit_ms, PERCENT))


def joined(visits: Sequence[Visit]) -> RateSearch:
    """Return the visits of one server as one search."""
    searches = [visit.search for visit in visits]
    together = RateSearch(
        (),
        np.concatenate([search.capacity_rps for search in searches]),
        np.concatenate([search.service_ms for search in searches]),
    )
    return together.with_probes([probe for search in searches for probe in search.probes])


def table(name: str, visits: Mapping[str, Sequence[Visit]], limit_ms: float) -> list[str]:
    """Return the lines of a model's table, in Markdown."""
    found = {server: joined(of) for server, of in visits.items()}
    limits = np.full(RESAMPLES, limit_ms)
    drawn = {
        server: resampled_rates(search, limits, PERCENT, number)
        for number, (server, search) in enumerate(found.items())
    }
    rates = {server: rate_under_slo(search, limit_ms, PERCENT) for server, search in found.items()}
    ours = next(iter(found))
    lines = [
        "",
        f"| {name} | tensors | one at a time, p50 ms | saturated, requests/s | requests/s at p99 of {limit_ms:g} ms "
        f"| by visit | {ours} over it |",
        "|---|---|---|---|---|---|---|",
    ]
    for server, search in found.items():
        alone, most = percentile(search.service_ms, 50), float(np.median(search.capacity_rps))
        by_visit = ", ".join(f"{visit.rate_rps:.0f}" for visit in visits[server])
        with np.errstate(divide="ignore"):  # a server may keep the limit at no rate of a resample
            ratio = _shown(rates[ours] / rates[server], drawn[ours] / drawn[server], 2) if rates[server] else "-"
        rate = _shown(rates[server], drawn[server], 0)
        lines.append(
            f"| {server} | {KINDS[server].tensors} | {alone:.2f} | {most:.0f} | {rate} | {by_visit} | {ratio} |"
        )
    return lines


def _shown(value: float, drawn: Floats, digits: int) -> str:
    low, high = interval(drawn)
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def play(options: argparse.Namespace, models: Mapping[str, Model], requests: list[Arrays], scratch: Path) -> None:
    """Visit every server of every model, round by round, and print a table for each model."""
    pythons = {s: environment(options.environments / s.replace(" ", "-"), KINDS[s].packages) for s in options.servers}
    order = [(model, server) for model in models for server in options.servers]
    visits: dict[str, dict[str, list[Visit]]] = {m: {s: [] for s in options.servers} for m in models}
    began = time.monotonic()
    for number in range(1 if options.check else options.rounds):
        taken = time.monotonic() - began
        if number and taken * (number + 1) / number > 60 * options.minutes:
            break
        for model, server in order[:: 1 if number % 2 == 0 else -1]:
            folder = scratch / f"{model} {server}"
            folder.mkdir(exist_ok=True)
            start = time.monotonic()
            with serving(KINDS[server], pythons[server], models[model], folder) as (process, client):
                check_scores(client, models[model], requests[0])
                if not options.check:
                    visits[model][server].append(measure(client, process, requests, options.p99_ms, number))
            did = "answers" if options.check else f"{visits[model][server][-1].rate_rps:.0f} requests/s"
            print(f"round {number + 1}: {model}, {server}: {did}, {time.monotonic() - start:.0f} s", flush=True)
    if not options.check:
        for model, found in visits.items():
            print("\n".join(table(model, found, options.p99_ms)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environments", type=Path, help="folder of the virtual environments")
    parser.add_argument("--servers", nargs="+", choices=tuple(KINDS), default=list(KINDS))
    parser.add_argument("--models", nargs="+", choices=("student", "baseline"), default=["student", "baseline"])
    parser.add_argument("--p99-ms", type=float, default=25.0)
    parser.add_argument("--rows", type=int, default=200, help="of a request")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=20.0, help="of all rounds together")
    parser.add_argument("--check", action="store_true", help="start each server, compare its scores, measure nothing")
    options = parser.parse_args()
    options.environments = options.environments.absolute()
    with tempfile.TemporaryDirectory() as scratch, quiet():
        models, requests = write_models(Path(scratch), options.models, options.rows)
        play(options, models, requests, Path(scratch))


if __name__ == "__main__":
    main()
