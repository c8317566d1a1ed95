"""The server process: uvicorn, its signals, and the swap of the model."""

from __future__ import annotations

import asyncio
import gc
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import cast

import uvicorn

from objectives.errors import ExplainedError, InputError, one_line
from objectives.serving.control.elastic import Elastic
from objectives.serving.http.app import Application, Endpoints
from objectives.serving.http.follower import follow
from objectives.serving.http.inference import Inference
from objectives.serving.http.intake.connection import Connection, Gate
from objectives.serving.http.limits import Limits
from objectives.serving.http.mirror import Mirror, running
from objectives.serving.http.model import Model
from objectives.serving.http.model_slot import ModelSlot
from objectives.serving.pool.balancing import LEAST_ROWS

# Seconds between the news that the server is to stop and the end of listening: clients with open connections are told
# to close them with their next response, and a load balancer sees that the server is not ready.
_NOTICE_SECONDS = 0.5
# Time after which a thread that waits for the interpreter gets it. With Python's 5 ms, a replica whose run has ended
# may wait as long for an event loop that parses large JSON.
SWITCH_SECONDS = 0.0005
# Thresholds of garbage collection, Python's but for the last: with 10 in place of 100, collections were a tenth of a
# profile under overload.
_COLLECTIONS = (700, 10, 100)
# Above the 60 s after which load balancers close an idle connection: the side that sends requests closes it first.
_KEEP_ALIVE_SECONDS = 75
Say = Callable[[str], None]


@dataclass(frozen=True)
class Started:
    """A server that listens."""

    name: str
    version: str
    url: str


def serve(
    find: Callable[[], Path],
    host: str,
    port: int,
    name: str | None,
    limits: Limits,
    say: Say,
    started: Callable[[Started], None],
    follow_seconds: float | None = None,
    mirror: Mirror | None = None,
    elastic: Elastic | None = None,
    policy: str = LEAST_ROWS,
) -> bool:
    """Serve a bundle until SIGTERM or SIGINT.

    Args:
        find: returns the bundle's folder, now and at each swap
        port: 0 takes a free one
        name: of the model in the paths of requests; None takes the bundle's
        say: called with each line of progress
        started: called once requests are accepted
        follow_seconds: time between two calls of `find`, whose result is swapped in where it is another folder; None
            for swaps by SIGHUP only
        mirror: sees the answered requests
        elastic: controller that chooses the bundle and its placement in place of `find`; None for one model
        policy: of balancing over the replicas, one of `balancing.POLICIES`

    Returns:
        Whether all accepted requests were answered before the end.

    Raises:
        InputError: there is no bundle, host and port cannot be taken, or the name cannot stand in a path.
        BundleError: the bundle does not verify.
    """
    # Python's default would end the process at a SIGHUP that comes before there is anything to swap.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if name is not None:
        _check_name(name)
    with _listen(host, port) as listener:

        def found() -> Model:
            return Model.open(find(), limits.placed, policy)

        model = found() if elastic is None else elastic.open(limits.placed, policy)
        model.tell_warnings(say)
        _check_name(name or model.bundle.name)
        inference = Inference(name or model.bundle.name, ModelSlot(model), limits, mirror)
        endpoints = Endpoints(inference, _version())
        config = http_config(endpoints, limits, endpoints)
        server = _Server(config, partial(started, Started(inference.name, model.version, _url(listener))))
        swapper, drainer = _Swapper(find, found, inference, say, follow_seconds), _Drainer(server, endpoints, say)
        loop = config.get_loop_factory()
        _spare_garbage_collection()
        sys.setswitchinterval(SWITCH_SECONDS)
        with running(mirror, lambda: inference.slot.model), asyncio.Runner(loop_factory=loop) as runner:
            left = runner.run(_run(server, listener, inference, swapper, drainer, elastic))
    say(f"{inference.answered} requests were answered, {left} were not")
    if not left:
        inference.slot.model.close()
    return not left


def http_config(app: Application, limits: Limits, gate: Gate | None = None) -> uvicorn.Config:
    """Return the settings of uvicorn, with its parser and its event loop in C, for an ASGI application.

    Args:
        gate: as for a `Connection`
    """
    return uvicorn.Config(
        app,
        # Called like a class.
        http=cast("type[asyncio.Protocol]", partial(Connection, limits=limits, gate=gate)),
        loop="uvloop",
        interface="asgi3",
        lifespan="off",
        ws="none",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=limits.drain_seconds,
    )


async def _run(
    server: _Server,
    listener: socket.socket,
    inference: Inference,
    swapper: _Swapper,
    drainer: _Drainer,
    elastic: Elastic | None,
) -> int:
    """Serve until the end, and return how many accepted requests are left without an answer."""
    loop = asyncio.get_running_loop()
    swapper.start()
    loop.add_signal_handler(signal.SIGHUP, swapper.look_again if elastic is None else elastic.ask_reload)
    tasks = [loop.create_task(inference.slot.relieve())]
    if elastic is not None:
        tasks.append(loop.create_task(elastic.run(inference)))
    for stop in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(stop, drainer.ask)
    await server.serve(sockets=[listener])
    # Counted before the loop's next turn, in which the requests that are left are cancelled.
    left = inference.in_flight
    swapper.cancel()
    for task in tasks:
        task.cancel()
    return left


class _Server(uvicorn.Server):
    """A server that leaves the signals to us and tells when it listens."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._started = started

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._started()


class _Swapper:
    """Swaps of the model, one after another; several signals during one swap ask for one more."""

    def __init__(
        self,
        find: Callable[[], Path],
        opened: Callable[[], Model],
        inference: Inference,
        say: Say,
        follow_seconds: float | None,
    ) -> None:
        """Make a swapper that asks for what `find` and `opened` return: the folder, and its model."""
        self._find, self._opened, self._inference, self._say = find, opened, inference, say
        self._follow_seconds = follow_seconds
        self._asked = False
        self._task: asyncio.Task[None] | None = None
        self._follower: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Follow what is found from now on, if that is asked for."""
        if self._follow_seconds is not None:
            slot = self._inference.slot
            following = follow(self._find, lambda: slot.model.bundle.folder, self._follow_seconds, self.ask, self._say)
            self._follower = asyncio.create_task(following)

    def ask(self) -> None:
        self._asked = True
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._swap_while_asked())

    def look_again(self) -> None:
        """Swap the model, and look for another challenger too."""
        if self._inference.mirror is not None:
            self._inference.mirror.refresh()
        self.ask()

    def cancel(self) -> None:
        for task in (self._task, self._follower):
            if task is not None:
                task.cancel()

    async def _swap_while_asked(self) -> None:
        while self._asked:
            self._asked = False
            await self._swap()

    async def _swap(self) -> None:
        metrics = self._inference.metrics
        try:
            model = await asyncio.to_thread(self._opened)
        except Exception as error:
            # Whatever is wrong with the new bundle, the old one serves on.
            explained = isinstance(error, (ExplainedError, InputError))
            reason = " ".join(str(error).split()) if explained else one_line(error)
            metrics.swapped("refused")
            self._say(f"the model stays {self._inference.slot.model.version}: {reason}")
            return
        metrics.swapped("done")
        model.tell_warnings(self._say)
        self._say(f"the model is {model.version} from now on")
        if (left := await self._inference.swap(model)) is not None:
            self._say(left)


class _Drainer:
    """The end of the server: it is no longer ready, then no longer listens, then ends with its last response."""

    def __init__(self, server: uvicorn.Server, endpoints: Endpoints, say: Say) -> None:
        self._server, self._endpoints, self._say = server, endpoints, say
        self._task: asyncio.Task[None] | None = None

    def ask(self) -> None:
        """Drain; asked a second time, stop at once."""
        if self._task is None:
            self._task = asyncio.create_task(self._drain())
        else:
            self._server.should_exit = self._server.force_exit = True

    async def _drain(self) -> None:
        self._endpoints.draining = True
        self._say("about to stop: the accepted requests are answered first")
        await asyncio.sleep(_NOTICE_SECONDS)
        self._server.should_exit = True


@contextmanager
def _listen(host: str, port: int) -> Iterator[socket.socket]:
    """Take an address, before the bundle is loaded."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise InputError(
            f"--host and --port: must be an address that is free here, but got {host} and {port}: {error}"
        ) from error
    with listener:
        yield listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _spare_garbage_collection() -> None:
    """Exclude what is loaded from garbage collections.

    These are 40,000 objects, which take 15 ms in which nothing is answered. What is replaced later is still freed by
    its reference count.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECTIONS)


def _check_name(name: str) -> None:
    """Check that a model's name can stand in a path."""
    if not re.fullmatch(r"[\w.-]+", name, re.ASCII):
        raise InputError(f"--name: must be letters, digits, '.', '_' or '-', but got {name!r}")


def _version() -> str:
    try:
        return version("leanrec")
    except PackageNotFoundError:
        return "unknown"
