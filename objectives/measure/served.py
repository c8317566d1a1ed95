"""A deployment behind the HTTP server of `leanrec serve`, in a process of its own on a free local port."""

from __future__ import annotations

import contextlib
import ctypes
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from objectives.errors import one_line
from objectives.measure.deployment import Deployment
from objectives.measurement.load_generator import Request
from objectives.records import InputSpec, rows_of
from objectives.serving.bundle import EXAMPLE_ROWS, write_bundle
from objectives.serving.http.limits import Limits
from objectives.serving.pool.pending_result import cut_rows
from spaces.candidate import Candidate
from spaces.serialization import Json
from spaces.techniques.quantization import Compute, Precision

_NAME = "candidate"
_HOST = "127.0.0.1"
_PR_SET_PDEATHSIG, _PR_SET_TIMERSLACK = 1, 29
# What Linux gives every process; a meter has less, which its children inherit.
_TIMER_SLACK_NS = 50_000


@dataclass(frozen=True)
class Served:
    """A server that answers: the id of its process, and the URL of its model."""

    process: int
    url: str


@contextmanager
def open_server(deployment: Deployment, inputs: Sequence[InputSpec], requests: Sequence[Request]) -> Iterator[Served]:
    """Write a bundle of a deployment and serve it until the end of the block.

    Args:
        inputs: of the model, as its manifest has them
        requests: that the server has to take, whatever their size

    Raises:
        RuntimeError: the server does not start; the message has its reason.
    """
    with tempfile.TemporaryDirectory(prefix="served-") as scratch:
        folder = Path(scratch, _NAME)
        precision = Precision(compute=cast(Compute, deployment.compute))
        candidate = Candidate(precision=precision, placement=deployment.placement)
        example = cut_rows(requests[0], 0, EXAMPLE_ROWS)
        write_bundle(folder, _NAME, Path(deployment.model), candidate, {}, inputs, "", example)
        with _serving({"folder": str(folder), **_limits(requests)}) as served:
            yield served


def _limits(requests: Sequence[Request]) -> Json:
    """Return the limits of a server as its users have them, or as large as the requests need."""
    usual = Limits()
    # Twice the arrays, for the JSON in front of them.
    needed = 2 * max(sum(values.nbytes for values in request.values()) for request in requests)
    rows = max(rows_of(request) for request in requests)
    return {"rows": max(usual.rows, rows), "body_bytes": max(usual.body_bytes, needed)}


@contextmanager
def _serving(settings: Json) -> Iterator[Served]:
    command = [sys.executable, "-P", "-m", "objectives.measure", "serve"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    try:
        with contextlib.suppress(BrokenPipeError), process.stdin as stream:
            stream.write(json.dumps(settings))
        yield Served(process.pid, _url(process.stdout))
    finally:
        # At once: nothing is left to be answered.
        process.kill()
        process.wait()
        process.stdout.close()


def _url(said: IO[str]) -> str:
    """Read the URL that a server prints once it answers."""
    line = said.readline()
    if not line:
        raise RuntimeError("The HTTP server of a deployment ended before it answered.")
    found = json.loads(line)
    if "error" in found:
        raise RuntimeError(f"The HTTP server of a deployment did not start: {found['error']}")
    return str(found["url"])


def serve_here(folder: str, rows: int, body_bytes: int) -> None:
    """Serve a bundle in this process, the child of `open_server`, and print its URL or the reason why there is none."""
    # Loaded here, since the meter itself does without the packages of a server.
    from objectives.serving.http.server import Started, serve

    if sys.platform == "linux":
        prctl = ctypes.CDLL(None).prctl
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        prctl(_PR_SET_TIMERSLACK, _TIMER_SLACK_NS, 0, 0, 0)

    def started(found: Started) -> None:
        print(json.dumps({"url": f"{found.url}/v2/models/{found.name}"}), flush=True)

    limits = Limits(rows=rows, body_bytes=body_bytes)
    try:
        serve(lambda: Path(folder), _HOST, 0, None, limits, lambda line: None, started)
    except Exception as error:
        print(json.dumps({"error": one_line(error)}), flush=True)
        sys.exit(1)
