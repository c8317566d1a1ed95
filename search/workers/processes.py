"""Worker processes, which run one job after another and are replaced when they die."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol, TypeVar, cast

from objectives.errors import FullDiskError
from objectives.jobs.protocol import STACKS, Request, response_type, write_request
from search.errors import ConfigError, JobError, LostJobError
from spaces.serialization import from_plain

Response = TypeVar("Response")
Kind = Literal["builder", "meter"]
MODULES: Mapping[Kind, str] = {"builder": "objectives.build", "meter": "objectives.measure"}
_PR_SET_PDEATHSIG = 1
# Time for a child to write its stacks before it is killed.
_STACKS_SECONDS = 0.2


@dataclass(frozen=True)
class Done:
    """End of a job: the response to its request, or an error in one line.

    seconds: without the time in which the job was paused
    lost: its process died or took too long
    killed: its process was ended by SIGKILL or SIGTERM, for example when memory ran out; another try may succeed
    wrong_input: the user's input is at fault
    full_disk: the disk is full, so that no other job can be done either
    """

    result: object | None
    error: str | None
    seconds: float
    lost: bool = False
    killed: bool = False
    wrong_input: bool = False
    full_disk: bool = False


class Worker:
    """One child process that runs one job at a time.

    A child that crashes, is killed, or outlasts its time fails its job with the reason; the next job starts a new one.
    Each part of a job that announces its parts has that time. The stacks of all threads of a child that took too long
    are written to the log.
    """

    def __init__(self, kind: Kind, log: Path, command: Sequence[str] | None = None) -> None:
        self.kind = kind
        self._log = log
        self._command = list(command or (sys.executable, "-P", "-m", MODULES[kind]))
        self._process: subprocess.Popen[bytes] | None = None
        self._started = self._stood_still = self._limit = 0.0
        self._part_began: float | None = None
        self._paused_at: float | None = None
        self._partial = b""
        self._request: Request[object] | None = None
        self.busy = False
        self.progress: list[str] = []

    def start(self, request: Request[object], limit_seconds: float) -> None:
        """Hand over a job; `poll` tells when it is done."""
        assert not self.busy
        if self._process is None or self._process.poll() is not None:
            self._spawn()
        self.busy, self._started, self._limit = True, time.monotonic(), limit_seconds
        self._stood_still, self._part_began = 0.0, None
        line, self._request = write_request(request) + "\n", request
        process = self._process
        assert process is not None and process.stdin is not None
        # A child that dies at this moment shows as an ended stream in `poll`.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(line.encode())
            process.stdin.flush()

    @property
    def stream(self) -> int:
        """File descriptor for a selector."""
        assert self._process is not None and self._process.stdout is not None
        return self._process.stdout.fileno()

    def poll(self) -> Done | None:
        """Return the job's end, or None while it runs; collects lines of progress."""
        assert self.busy and self._process is not None
        try:
            chunk = os.read(self.stream, 1 << 20)
        except BlockingIOError:
            chunk = None
        if chunk == b"":
            return self._died()
        if chunk:
            *lines, self._partial = (self._partial + chunk).split(b"\n")
            for line in lines:
                reply = json.loads(line)
                if "progress" in reply:
                    self.progress.append(reply["progress"])
                    continue
                if "part" in reply:
                    self._part_began = self._worked()
                    continue
                if "trace" in reply:
                    with self._log.open("a") as log:
                        log.write(reply["trace"])
                if "error" in reply:
                    return self._end(reply["error"], wrong_input=reply["input"], full_disk=reply["full_disk"])
                return self._answered(reply["result"])
        if self._paused_at is None and self._worked() - (self._part_began or 0.0) > self._limit:
            return self._took_too_long()
        return None

    def pause(self) -> None:
        """Pause the child, so that a benchmark has the machine to itself."""
        if self.busy and self._paused_at is None and self._process is not None:
            self._process.send_signal(signal.SIGSTOP)
            self._paused_at = time.monotonic()

    def resume(self) -> None:
        if self._paused_at is not None and self._process is not None:
            self._stood_still += time.monotonic() - self._paused_at
            self._paused_at = None
            self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill the child at once, in any state, and the processes that it started, which are in its session."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()
        self._process, self._paused_at, self._partial = None, None, b""

    def _spawn(self) -> None:
        self.kill()
        self._log.parent.mkdir(parents=True, exist_ok=True)
        root = str(Path(__file__).resolve().parents[2])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                # Ctrl-C reaches the coordinator only, which ends its children itself.
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                preexec_fn=_bind_to_parent if sys.platform == "linux" else None,
            )
        os.set_blocking(self.stream, False)

    def _worked(self) -> float:
        still = self._stood_still + (0.0 if self._paused_at is None else time.monotonic() - self._paused_at)
        return time.monotonic() - self._started - still

    def _answered(self, plain: object) -> Done:
        assert self._request is not None
        try:
            return self._end(result=from_plain(response_type(type(self._request)), plain))
        except ValueError as error:
            return self._end(str(error))

    def _end(
        self,
        error: str | None = None,
        result: object = None,
        lost: bool = False,
        wrong_input: bool = False,
        full_disk: bool = False,
    ) -> Done:
        self.busy = False
        return Done(result, error, self._worked(), lost, wrong_input=wrong_input, full_disk=full_disk)

    def _took_too_long(self) -> Done:
        began = self._part_began
        what = "The job" if began is None else f"A part of the job, which began after {began:.0f} s,"
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(STACKS)
            time.sleep(_STACKS_SECONDS)
        self.kill()
        error = (
            f"{what} took longer than {self._limit:g} s and was ended; see {self._log}. workers.job_seconds and "
            "fit_seconds are the limits of a study."
        )
        return self._end(error, lost=True)

    def _died(self) -> Done:
        assert self._process is not None
        code = self._process.wait()
        end = f"ended with status {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"
        hint = " (out of memory?)" if code == -signal.SIGKILL else ""
        done = self._end(f"The {self.kind} {end}{hint}; its log is {self._log}.", lost=True)
        with contextlib.suppress(OSError), self._log.open("a") as log:
            log.write(f"{done.error}\n")
        self.kill()
        return replace(done, killed=code in (-signal.SIGKILL, -signal.SIGTERM))


@dataclass(frozen=True)
class Workers:
    """Builders and the meter of one command."""

    builders: tuple[Worker, ...]
    meter: Worker

    @property
    def builder(self) -> Worker:
        """The first builder, for work that needs one at a time."""
        return self.builders[0]


@contextmanager
def open_workers(logs: Path, builders: int = 1) -> Iterator[Workers]:
    """Workers that are ended with the block; a process starts with its first job."""
    made = tuple(Worker("builder", logs / f"builder-{i}.log") for i in range(builders))
    workers = Workers(made, Worker("meter", logs / "meter.log"))
    try:
        yield workers
    finally:
        for worker in (*workers.builders, workers.meter):
            worker.kill()


def call(worker: Worker, request: Request[Response], limit_seconds: float, say: Callable[[str], None]) -> Response:
    """The response to a request that is waited for; progress is passed on.

    Raises:
        JobError: the job failed, with the reason; LostJobError where its process died or took too long.
        FullDiskError: the job failed since the disk is full, which says nothing of what it was asked for.
        ConfigError: a setting, the user's factory, or its result is invalid.
    """
    worker.start(request, limit_seconds)
    while True:
        wait([worker], 0.5)
        done = worker.poll()
        while worker.progress:
            say(worker.progress.pop(0))
        if done is None:
            continue
        if done.error is None:
            return cast(Response, done.result)
        if done.full_disk:
            raise FullDiskError(done.error.partition(": ")[2])
        if done.wrong_input:
            raise ConfigError(done.error.partition(": ")[2])
        raise LostJobError(done.error) if done.lost else JobError(done.error)


class Clock(Protocol):
    """A clock, and the wait for workers in which its time passes."""

    def now(self) -> float:
        """Return the seconds since some moment."""

    def wait(self, workers: Sequence[Worker], seconds: float) -> None:
        """Wait until one of the busy workers has sent something, or for some seconds."""


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        return time.monotonic()

    def wait(self, workers: Sequence[Worker], seconds: float) -> None:
        wait(workers, seconds)


def wait(workers: Sequence[Worker], seconds: float) -> None:
    """Wait until one of the busy workers has sent something, or for some seconds."""
    with selectors.DefaultSelector() as selector:
        for worker in workers:
            if worker.busy:
                selector.register(worker.stream, selectors.EVENT_READ)
        selector.select(seconds)


def _bind_to_parent() -> None:
    """Make the child die with its parent, however that ends, and be the first to go when memory runs out."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")
