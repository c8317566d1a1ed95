"""Time that the HTTP server adds to the bare pool at p50, p95 and p99, and the effect of the interpreter lock.

    python tests/benchmarks/server_cost.py [--rate 150] [--blocks 20] [--requests 50] [--rows 200] [--sizes student]

Every arm answers the same requests at the same times, in an open loop, in blocks that take turns in a random order:

    pool                     in the client's process, by itself
    static answer            uvicorn and Starlette alone, with a fixed answer: what client and ASGI server take
    5 ms, 0.5 ms             the server of `leanrec serve` with Python's switch interval, by default 5 ms
    worker process           the same, the pool in a process of its own behind the event loop's
    ..., busy                the same, while another client keeps the event loop parsing JSON that it then refuses

Figures are milliseconds with 95% intervals by resampled blocks. The client is `objectives/measure/remote_model.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import multiprocessing
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from objectives.measure.deployment import quiet, warm_up
from objectives.measure.remote_model import RemoteModel
from objectives.measurement.arrivals import Traffic, gaps
from objectives.measurement.load_target import LiveTarget
from objectives.measurement.statistics import Floats, block_percentiles, block_picks, interval, percentile
from objectives.records import InputSpec
from objectives.serving.bundle import read_bundle, write_bundle
from objectives.serving.http.limits import Limits
from objectives.serving.pool import Pool
from objectives.serving.pool.pending_result import PendingResult
from spaces.candidate import Candidate
from spaces.techniques.placement import InstanceGroup, Placement

PERCENTS = (50, 95, 99)
SERVERS = {"5 ms": ("serve", "0.005"), "0.5 ms": ("serve", "0.0005"), "worker process": ("worker", "0.005")}
PLACEMENT = Placement(InstanceGroup(threads=1))
# JSON numbers of a request that is refused after it was parsed: on the event loop, since it has less than 64 KiB; and
# how often it is sent in a second, at most.
_REFUSED_NUMBERS, _REFUSED_RATE = 9000, 150
Request = dict[str, NDArray[Any]]


# -- servers, each in a process of its own


def serve(folder: str, switch_seconds: str) -> None:
    """Serve a bundle as `leanrec serve` does, with a switch interval of the interpreter."""
    from objectives.serving.http.server import Started, serve

    def started(found: Started) -> None:
        print(f"{found.url}/v2/models/{found.name}", flush=True)

    sys.setswitchinterval(float(switch_seconds))
    serve(lambda: Path(folder), "127.0.0.1", 0, None, Limits(), lambda line: None, started)


class PoolElsewhere:
    """A pool in a child process, with the methods that the server calls: arrays there and scores back through pipes."""

    queued = 0

    def __init__(self, folder: Path) -> None:
        ours, theirs = multiprocessing.Pipe()
        self._connection, self._pending = ours, dict[int, PendingResult]()
        self._lock, self._number = threading.Lock(), 0
        multiprocessing.get_context("spawn").Process(target=run_pool, args=(folder, theirs), daemon=True).start()
        assert ours.recv() == "open"
        threading.Thread(target=self._receive, daemon=True).start()

    def submit(self, request: Request) -> PendingResult:
        result = PendingResult()
        with self._lock:
            self._number += 1
            self._pending[self._number] = result
            self._connection.send((self._number, request))
        return result

    def close(self) -> None:
        self._connection.close()

    def _receive(self) -> None:
        with contextlib.suppress(EOFError, OSError):  # closed
            while True:
                number, scores = self._connection.recv()
                self._pending.pop(number).finish(scores, time.perf_counter_ns())


def run_pool(folder: Path, connection: Connection) -> None:
    with read_bundle(folder).open() as pool:
        lock = threading.Lock()
        connection.send("open")
        while True:
            number, request = connection.recv()

            def answered(result: Future[Any], number: int = number) -> None:
                with lock:
                    connection.send((number, result.result()))

            pool.submit(request).add_done_callback(answered)


def worker(folder: str, switch_seconds: str) -> None:
    """Serve a bundle whose pool runs in another process."""
    from objectives.serving.http.model import Model

    def opened(where: Path) -> Model:
        pool: Any = PoolElsewhere(where)
        return Model(read_bundle(where), pool)

    Model.open = opened  # type: ignore[method-assign, assignment]
    serve(folder, switch_seconds)


def static(folder: str, rows: str) -> None:
    """Serve a fixed answer by the same ASGI stack and settings, once the body is read."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request as Asked
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    inputs = [{"name": "item", "datatype": "INT64", "shape": [-1]}]
    size = 4 * int(rows)
    tensor = {"name": "scores", "shape": [int(rows)], "datatype": "FP32", "parameters": {"binary_data_size": size}}
    header = json.dumps({"model_name": "m", "model_version": "1", "outputs": [tensor]}).encode()
    body, headers = header + bytes(size), {"Inference-Header-Content-Length": str(len(header))}

    async def infer(request: Asked) -> Response:
        await request.body()
        return Response(body, 200, headers)

    async def described(request: Asked) -> Response:
        return JSONResponse({"inputs": inputs})

    routes = [Route("/v2/models/m", described), Route("/v2/models/m/infer", infer, methods=["POST"])]
    options: dict[str, Any] = {"lifespan": "off", "ws": "none", "log_config": None, "access_log": False}
    config = uvicorn.Config(Starlette(routes=routes), server_header=False, proxy_headers=False, **options)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(f"http://127.0.0.1:{listener.getsockname()[1]}/v2/models/m", flush=True)
        uvicorn.Server(config).run(sockets=[listener])


@contextmanager
def running(kind: str, folder: Path, argument: str) -> Iterator[tuple[int, str]]:
    """A server of one of these kinds: its process and the URL of its model."""
    command = [sys.executable, __file__, kind, str(folder), argument]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.pid, process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()


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


def play(
    targets: Mapping[str, LiveTarget], requests: list[Request], rate: float, blocks: int, seed: int
) -> dict[str, Floats]:
    """Latency in milliseconds of each arm, (blocks, requests)."""
    random, found = np.random.default_rng(seed), {name: list[Floats]() for name in targets}
    schedule = gaps(Traffic(), rate, blocks * len(requests), seed).reshape(blocks, -1)
    for block in range(blocks):
        for name in random.permutation(list(targets)):
            targets[name].settle()
            found[name].append(targets[name].open_loop(requests, schedule[block]).latency_ms)
    return {name: np.array(latencies) for name, latencies in found.items()}


def line(name: str, latency: Floats, beside: Floats | None) -> str:
    """The percentiles of an arm, and their differences to another one's, by the same resamples of blocks."""
    picks, cells = block_picks(len(latency), 0), []
    for percent in PERCENTS:
        value, drawn = percentile(latency, percent), block_percentiles(latency, percent, picks)
        if beside is not None:
            value, drawn = value - percentile(beside, percent), drawn - block_percentiles(beside, percent, picks)
        low, high = interval(drawn)
        cells.append(f"{value:8.3f} [{low:.3f}, {high:.3f}]")
    return f"{name:<34}" + "".join(f"{cell:>28}" for cell in cells)


def measure(folder: Path, requests: list[Request], rate: float, blocks: int) -> None:
    bundle = read_bundle(folder)
    with ExitStack() as stack:
        pool = stack.enter_context(Pool.open(folder / "model.onnx", PLACEMENT))
        started = {name: stack.enter_context(running(kind, folder, how)) for name, (kind, how) in SERVERS.items()}
        rows = str(len(requests[0]["item"]))
        started["static answer"] = stack.enter_context(running("static", folder, rows))
        children = tuple(process for process, _ in started.values())
        targets = {"pool": LiveTarget(pool.submit, 1, 2, 1, children)}
        for name, (_, url) in started.items():
            remote = stack.enter_context(RemoteModel(url))
            targets[name] = LiveTarget(remote.submit, 1, 6, None, children)
        for target in targets.values():
            warm_up(target.submit, requests, bundle.candidate.placement)
        idle = play(targets, requests, rate, blocks, 0)
        busy = {}
        for name in SERVERS:
            with keeping_busy(started[name][1]):
                busy[name] = play({name: targets[name]}, requests, rate, blocks, 1)[name]
    print(f"{'milliseconds':<34}" + "".join(f"{f'p{percent}':>28}" for percent in PERCENTS))
    for name, latency in idle.items():
        print(line(name, latency, None))
    for name, latency in busy.items():
        print(line(f"{name}, busy", latency, None))
    print("added to the pool")
    for name in SERVERS:
        print(line(name, idle[name], idle["pool"]))
    print("added to the static answer, pool included")
    for name in SERVERS:
        print(line(name, idle[name], idle["static answer"]))


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
        folder = Path(scratch, "bundle")
        write_bundle(folder, "measured", model, Candidate(placement=PLACEMENT), {}, inputs, "", requests[0])
        print(f"{options.sizes}, {options.rows} rows, {options.rate:g} requests/s, {options.blocks} blocks", flush=True)
        with quiet():
            measure(folder, requests, options.rate, options.blocks)


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in ("serve", "worker", "static"):
        {"serve": serve, "worker": worker, "static": static}[sys.argv[1]](*sys.argv[2:])
    else:
        main()
