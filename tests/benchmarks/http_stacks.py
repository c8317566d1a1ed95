"""Time of a fixed answer behind several HTTP servers: what each stack takes, seen by a raw client.

    python tests/benchmarks/http_stacks.py [--rate 150] [--blocks 20] [--requests 50] [--rows 200]

uvicorn              with httptools and uvloop, and an ASGI application without a framework, as `leanrec serve` has it
uvicorn, Starlette   the same with Starlette's routes, requests and responses
aiohttp              its low-level server on uvloop
granian              RSGI, one worker; its HTTP is in Rust

A stack whose packages are not installed is left out. All answer the same requests at the same times, in blocks that
take turns in a random order. Figures are milliseconds with 95% intervals by resampled blocks.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from objectives.measure.deployment import quiet
from objectives.measurement.arrivals import Traffic, gaps
from objectives.measurement.statistics import Floats
from tests.benchmarks.percentile_lines import heading, line
from tests.benchmarks.raw_client import RawClient

BODY = bytes(1000)
NEEDS = {
    "uvicorn": ("uvicorn", "httptools", "uvloop"),
    "uvicorn, Starlette": ("uvicorn", "httptools", "uvloop", "starlette"),
    "aiohttp": ("aiohttp", "uvloop"),
    "granian": ("granian",),
}


# -- servers, each in a process of its own


def uvicorn(framework: str) -> None:
    import uvicorn

    from objectives.serving.http.app import Scope, Send
    from objectives.serving.http.intake.body import Receive
    from objectives.serving.http.limits import Limits
    from objectives.serving.http.server import http_config

    async def plain(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["more_body"]:
            pass
        headers = [(b"content-type", b"application/octet-stream"), (b"content-length", str(len(BODY)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": BODY})

    app = starlette() if framework == "Starlette" else plain
    with _listener() as listener:
        uvicorn.Server(http_config(app, Limits())).run(sockets=[listener])


def starlette() -> Any:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    async def infer(request: Request) -> Response:
        await request.body()
        return Response(BODY, 200)

    return Starlette(routes=[Route("/infer", infer, methods=["POST"])])


def aiohttp(_: str) -> None:
    import uvloop
    from aiohttp import web

    async def infer(request: web.BaseRequest) -> web.Response:
        await request.read()
        return web.Response(body=BODY)

    async def main() -> None:
        with _listener() as listener:
            await asyncio.get_running_loop().create_server(web.Server(infer), sock=listener)
            await asyncio.Event().wait()

    uvloop.run(main())


async def rsgi(scope: Any, protocol: Any) -> None:
    await protocol()
    protocol.response_bytes(200, [("content-type", "application/octet-stream")], BODY)


def granian(_: str) -> None:
    from granian import Granian
    from granian.constants import Interfaces

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    print(port, flush=True)
    target, settings = "tests.benchmarks.http_stacks:rsgi", {"address": "127.0.0.1", "port": port, "workers": 1}
    Granian(target, interface=Interfaces.RSGI, log_enabled=False, **settings).serve()


def _listener() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    return listener


SERVERS: dict[str, tuple[Callable[[str], None], str]] = {
    "uvicorn": (uvicorn, ""),
    "uvicorn, Starlette": (uvicorn, "Starlette"),
    "aiohttp": (aiohttp, ""),
    "granian": (granian, ""),
}


# -- the comparison


def port_of(name: str, stack: ExitStack) -> int:
    """Return the port of a server that listens until the stack ends."""
    process = subprocess.Popen([sys.executable, __file__, "serve", name], stdout=subprocess.PIPE, text=True)
    stack.callback(process.wait)
    stack.callback(process.terminate)
    assert process.stdout is not None
    port = int(process.stdout.readline())
    for _ in range(100):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.1)
        else:
            return port
    raise TimeoutError(f"{name} does not listen")


def measure(names: list[str], message: bytes, rate: float, blocks: int, requests: int) -> dict[str, Floats]:
    """Return latency in milliseconds of each stack, (blocks, requests)."""
    random, found = np.random.default_rng(0), {name: list[Floats]() for name in names}
    schedule = gaps(Traffic(), rate, blocks * requests, 0).reshape(blocks, -1)
    with ExitStack() as stack:
        ports = {name: port_of(name, stack) for name in names}
        clients = {n: stack.enter_context(RawClient(("127.0.0.1", p), [message] * requests)) for n, p in ports.items()}
        for block in range(-1, blocks):  # the first warms up
            for name in random.permutation(names):
                latency = clients[name].open_loop(schedule[block])
                if block >= 0:
                    found[name].append(latency)
    return {name: np.array(latencies) for name, latencies in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=150.0, help="requests per second")
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument("--requests", type=int, default=50, help="of a block")
    parser.add_argument("--rows", type=int, default=200, help="of a request, of eight inputs")
    options = parser.parse_args()
    names = [name for name, needs in NEEDS.items() if all(importlib.util.find_spec(one) for one in needs)]
    body = bytes(8 * 8 * options.rows)
    head = (
        f"POST /infer HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\nContent-Length: {len(body)}\r\n"
    )
    with quiet():
        found = measure(names, head.encode() + b"\r\n" + body, options.rate, options.blocks, options.requests)
    print(f"{len(body)} bytes, {options.rate:g} requests/s, {options.blocks} blocks of {options.requests}")
    print(heading())
    for name, latency in found.items():
        print(line(name, latency, None))


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve, argument = SERVERS[sys.argv[2]]
        serve(argument)
    else:
        main()
