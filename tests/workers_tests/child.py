"""A worker's child whose jobs work, fail, hang and die; run as a module."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

from objectives.jobs.protocol import PartProgress, Progress, Request, serve


@dataclass(frozen=True)
class Number:
    value: float


@dataclass(frozen=True)
class Double(Request[Number]):
    value: int


@dataclass(frozen=True)
class Sleep(Request[Number]):
    """Gives the child's process id."""

    seconds: float = 0.0


@dataclass(frozen=True)
class Parts(Request[Number]):
    """Sleeps a number of times, each an announced part."""

    count: int
    seconds: float


@dataclass(frozen=True)
class Start(Request[Number]):
    """Gives the process id of a child of its own."""


@dataclass(frozen=True)
class Fail(Request[Number]):
    pass


@dataclass(frozen=True)
class Fault(Request[Number]):
    pass


@dataclass(frozen=True)
class Leave(Request[Number]):
    pass


@dataclass(frozen=True)
class OutOfMemory(Request[Number]):
    pass


@dataclass(frozen=True)
class Infinite(Request[Number]):
    pass


def _double(request: Double, progress: Progress) -> Number:
    progress("working")
    print("noise on stdout")
    return Number(2 * request.value)


def _sleep(request: Sleep, progress: Progress) -> Number:
    time.sleep(request.seconds)
    return Number(os.getpid())


def _parts(request: Parts, progress: PartProgress) -> Number:
    for _ in range(request.count):
        progress.next_part()
        time.sleep(request.seconds)
    return Number(request.count)


def _start(request: Start, progress: Progress) -> Number:
    return Number(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid)


def _fail(request: Fail, progress: Progress) -> Number:
    raise ValueError("bad thing\nsecond line")


def _fault(request: Fault, progress: Progress) -> Number:
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError


def _leave(request: Leave, progress: Progress) -> Number:
    os._exit(7)


def _out_of_memory(request: OutOfMemory, progress: Progress) -> Number:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def _infinite(request: Infinite, progress: Progress) -> Number:
    return Number(float("inf"))


if __name__ == "__main__":
    serve(
        {
            Double: _double,
            Sleep: _sleep,
            Parts: _parts,
            Start: _start,
            Fail: _fail,
            Fault: _fault,
            Leave: _leave,
            OutOfMemory: _out_of_memory,
            Infinite: _infinite,
        }
    )
