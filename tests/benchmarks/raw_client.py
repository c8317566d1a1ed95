"""A client of one thread over raw sockets, in a process of its own: about the least that a client can take.

It parses nothing of an answer but its status and length, and shares no interpreter with what is measured beside it.
"""

from __future__ import annotations

import multiprocessing
import select
import socket
import time
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import Connection
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from objectives.measurement.load_generator import precise_sleep
from objectives.measurement.statistics import Floats

_CONNECTIONS = 16
_PRIMED = 30
_TIMEOUT_SECONDS = 30.0
Address = tuple[str, int]


class RawClient:
    """Client process of one server, which sends messages as they are."""

    def __init__(self, address: Address, messages: Sequence[bytes]) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        target = (address, list(messages), theirs)
        self._process = multiprocessing.get_context("spawn").Process(target=_play, args=target, daemon=True)
        self._process.start()

    def open_loop(self, gaps_ns: NDArray[np.int64]) -> Floats:
        """Send the first messages at their times; return the milliseconds of each from then on."""
        self._pipe.send(gaps_ns)
        found: Floats | str = self._pipe.recv()
        if isinstance(found, str):
            raise RuntimeError(found)
        return found

    def __enter__(self) -> RawClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.join()


def _play(address: Address, messages: list[bytes], pipe: Connection) -> None:
    precise_sleep()
    sockets = [socket.create_connection(address, timeout=_TIMEOUT_SECONDS) for _ in range(_CONNECTIONS)]
    for one in sockets:
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while True:
        gaps_ns = pipe.recv()
        try:
            for message in messages[:_PRIMED]:
                _played(sockets[:1], [message], [time.perf_counter_ns()])
            due = (np.cumsum(gaps_ns) + time.perf_counter_ns()).tolist()
            pipe.send(np.array(_played(sockets, messages, due)) / 1e6)
        except (OSError, ValueError) as error:
            pipe.send(f"raw client: {error}")


def _played(sockets: Sequence[socket.socket], messages: Sequence[bytes], due: Sequence[int]) -> list[int]:
    """Return the nanoseconds from each message's time to the end of its answer."""
    clock, taken = time.perf_counter_ns, [0] * len(due)
    free, waiting, busy = deque(sockets), deque[int](), dict[socket.socket, tuple[int, bytes]]()
    sent = answered = 0
    while answered < len(due):
        now = clock()
        while sent < len(due) and due[sent] <= now:
            waiting.append(sent)
            sent += 1
        while waiting and free:
            one, number = free.popleft(), waiting.popleft()
            one.sendall(messages[number])
            busy[one] = (number, b"")
        left = (due[sent] - clock()) / 1e9 if sent < len(due) else _TIMEOUT_SECONDS
        for one in select.select(list(busy), [], [], max(left, 0.0))[0]:
            number, data = busy[one]
            chunk = one.recv(1 << 16)
            if not chunk:
                raise ValueError(f"must be answered, but the connection was closed after {data[:300]!r}")
            data += chunk
            busy[one] = (number, data)
            if _is_whole(data):
                taken[number] = clock() - due[number]
                del busy[one]
                free.append(one)
                answered += 1
    return taken


def _is_whole(data: bytes) -> bool:
    """Return whether an answer has arrived in full.

    Raises:
        ValueError: it is an error.
    """
    head, end, body = data.partition(b"\r\n\r\n")
    if end and b" 200 " not in head[:13]:
        raise ValueError(f"must be answered with status 200, but got {data[:300]!r}")
    return bool(end) and len(body) == int(head.lower().split(b"\r\ncontent-length:")[1].split(b"\r\n")[0])
