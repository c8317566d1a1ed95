"""Time that the HTTP server adds to the bare pool at p50, p95 and p99, and the effect of the interpreter lock.

    python tests/benchmarks/server_cost.py [--rate 150] [--blocks 20] [--requests 50] [--rows 200] [--sizes student]

Every arm answers the same requests at the same times, in an open loop, in blocks that take turns in a random order:

    pool                     in the client's process, by itself
    static answer            the server's HTTP alone, with a fixed answer: what client, network and HTTP take
    pool, inline             the same, on the thread that submits
    5 ms, 0.5 ms             the server of `leanrec serve` with Python's switch interval, by default 5 ms
    inline                   the same with 0.5 ms, short runs on the event loop's thread
    worker process           the same, the pool in a process of its own behind the event loop's
    ..., busy                the same, while another client keeps the event loop parsing JSON that it then refuses
    ..., raw                 the same servers by a client of one thread, in a process of its own

Figures are milliseconds with 95% intervals by resampled blocks. The client is `objectives/measure/remote_model.py`,
where none is named; the raw one is `tests/benchmarks/raw_client.py`, which encodes and decodes nothing.
`tests/benchmarks/http_stacks.py` has the static answer of other HTTP servers.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from objectives.measure.deployment import quiet, warm_up
from objectives.measure.remote_model import RemoteModel, encoded
from objectives.measurement.arrivals import Traffic, gaps
from objectives.measurement.load_target import LiveTarget
from objectives.measurement.statistics import Floats
from objectives.records import InputSpec
from objectives.serving.bundle import read_bundle, write_bundle
from objectives.serving.http.protocol import HEADER_LENGTH
from spaces.candidate import Candidate
from spaces.techniques.placement import InstanceGroup, Placement
from tests.benchmarks.percentile_lines import heading, line
from tests.benchmarks.raw_client import RawClient
from tests.benchmarks.server_processes import running

PLACEMENTS = {
    "": Placement(InstanceGroup(threads=1)),
    ", inline": Placement(InstanceGroup(threads=1), inline=True),
}
# By arm: the kind of the process, the switch interval, and the placement.
SERVERS = {
    "5 ms": ("serve", "0.005", ""),
    "0.5 ms": ("serve", "0.0005", ""),
    "inline": ("serve", "0.0005", ", inline"),
    "worker process": ("worker", "0.005", ""),
}
# JSON numbers of a request that is refused after it was parsed: on the event loop, since it has less than 64 KiB; and
# how often it is sent in a second, at most.
_REFUSED_NUMBERS, _REFUSED_RATE = 9000, 150
_EXAMPLE_ROWS = 4
Request = dict[str, NDArray[Any]]


# -- the client


@contextmanager
def keeping_busy(url: str) -> Iterator[None]:
    """Send requests of many JSON numbers that the server parses and then refuses, from a process of its own."""
    process = multiprocessing.get_context("spawn").Process(target=send_refused, args=(url,), daemon=True)
    process.start()
    time.sleep(1.0)
    try:
        yield
    finally:
        process.kill()
        process.join()


def send_refused(url: str) -> None:
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port or 0)
    tensor = {"name": "unknown", "shape": [_REFUSED_NUMBERS], "datatype": "INT64", "data": [12345] * _REFUSED_NUMBERS}
    body = json.dumps({"inputs": [tensor]})
    while True:
        connection.request("POST", f"{place.path}/infer", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        response.read()
        assert response.status == 400, response.status
        time.sleep(1 / _REFUSED_RATE)


class RawTarget:
    """A server by a raw client, as a target of `play`."""

    def __init__(self, client: RawClient, settled: LiveTarget) -> None:
        self._client, self._settled = client, settled

    def settle(self) -> None:
        self._settled.settle()

    def latency_ms(self, requests: list[Request], schedule: NDArray[np.int64]) -> Floats:
        return self._client.open_loop(schedule)


class PythonTarget(LiveTarget):
    """A pool, or a server by the client of a study, as a target of `play`."""

    def latency_ms(self, requests: list[Request], schedule: NDArray[np.int64]) -> Floats:
        return self.open_loop(requests, schedule).latency_ms


def play(
    targets: Mapping[str, PythonTarget | RawTarget], requests: list[Request], rate: float, blocks: int, seed: int
) -> dict[str, Floats]:
    """Latency in milliseconds of each arm, (blocks, requests)."""
    random, found = np.random.default_rng(seed), {name: list[Floats]() for name in targets}
    schedule = gaps(Traffic(), rate, blocks * len(requests), seed).reshape(blocks, -1)
    for block in range(blocks):
        for name in random.permutation(list(targets)):
            targets[name].settle()
            found[name].append(targets[name].latency_ms(requests, schedule[block]))
    return {name: np.array(latencies) for name, latencies in found.items()}


def raw_target(url: str, requests: list[Request], beside: LiveTarget, stack: ExitStack) -> RawTarget:
    """A server by a raw client, beside whose blocks the same processes are idle as beside those of a pool."""
    place = urlsplit(url)
    client = RawClient((place.hostname or "", place.port or 0), [raw_message(place.path, one) for one in requests])
    return RawTarget(stack.enter_context(client), beside)


def raw_message(path: str, request: Request) -> bytes:
    header, body = encoded(request)
    lines = f"Host: localhost\r\nContent-Length: {len(body)}\r\n{HEADER_LENGTH}: {header}\r\n"
    return f"POST {path}/infer HTTP/1.1\r\n{lines}\r\n".encode() + body


def measure(folders: Mapping[str, Path], requests: list[Request], rate: float, blocks: int) -> None:
    with ExitStack() as stack:
        started = {
            name: stack.enter_context(running(kind, folders[placed], how))
            for name, (kind, how, placed) in SERVERS.items()
        }
        rows = str(len(requests[0]["item"]))
        started["static answer"] = stack.enter_context(running("static", folders[""], rows))
        children = tuple(process for process, _ in started.values())
        pools: dict[str, PythonTarget] = {}
        for placed, folder in folders.items():
            pool = stack.enter_context(read_bundle(folder).open())
            warm_up(pool.submit, requests, PLACEMENTS[placed])
            pools[f"pool{placed}"] = PythonTarget(pool.submit, 1, 2, True, in_turn=1, children=children)
        targets: dict[str, PythonTarget | RawTarget] = {**pools}
        for name, (_, url) in started.items():
            remote = stack.enter_context(RemoteModel(url))
            targets[name] = PythonTarget(remote.submit, 1, 6, True, children=children)
            warm_up(remote.submit, requests, PLACEMENTS[""])
            targets[f"{name}, raw"] = raw_target(url, requests, pools["pool"], stack)
        idle = play(targets, requests, rate, blocks, 0)
        busy = {}
        for name in SERVERS:
            with keeping_busy(started[name][1]):
                busy[name] = play({name: targets[name]}, requests, rate, blocks, 1)[name]
    report(idle, busy)


def report(idle: Mapping[str, Floats], busy: Mapping[str, Floats]) -> None:
    print(heading())
    for name, latency in idle.items():
        print(line(name, latency, None))
    for name, latency in busy.items():
        print(line(f"{name}, busy", latency, None))
    print("added to the pool of the same placement")
    for name, latency in idle.items():
        if not name.startswith("pool"):
            print(line(name, latency, idle["pool, inline" if name.startswith("inline") else "pool"]))
    print("added to the static answer by the same client, pool included")
    for name in SERVERS:
        for client in ("", ", raw"):
            print(line(name + client, idle[name + client], idle[f"static answer{client}"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=150.0, help="requests per second")
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument("--requests", type=int, default=50, help="of a block")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--sizes", choices=("student", "baseline"), default="student", help="of the model, in fp32")
    options = parser.parse_args()
    from objectives.recommenders.families.dcn_v2 import BASELINE
    from tests.benchmarks.models import FIELDS, STUDENT, USER_FIELDS, request, write_model

    random = np.random.default_rng(0)
    requests: list[Request] = [dict(request(options.rows, random)) for _ in range(options.requests)]
    inputs = [InputSpec(n, "int64", (), size, "user" if n in USER_FIELDS else "item") for n, size in FIELDS.items()]
    with tempfile.TemporaryDirectory() as scratch:
        model = write_model(Path(scratch, "model"), STUDENT if options.sizes == "student" else BASELINE)
        folders = {}
        for number, (placed, placement) in enumerate(PLACEMENTS.items()):
            folders[placed] = Path(scratch, f"bundle-{number}")
            example = {name: values[:_EXAMPLE_ROWS] for name, values in requests[0].items()}
            candidate = Candidate(placement=placement)
            write_bundle(folders[placed], "measured", model, candidate, {}, inputs, "", example)
        print(f"{options.sizes}, {options.rows} rows, {options.rate:g} requests/s, {options.blocks} blocks", flush=True)
        with quiet():
            measure(folders, requests, options.rate, options.blocks)


if __name__ == "__main__":
    main()
