"""The pipe between the coordinator and a worker: one JSON line holds a request, one its response."""

from __future__ import annotations

import errno
import faulthandler
import functools
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, Generic, Protocol, TextIO, TypeVar, cast, get_args

from objectives.errors import FullDiskError, InputError, one_line
from spaces.serialization import from_plain, to_plain

Response = TypeVar("Response", covariant=True)
Progress = Callable[[str], None]
# Signal at which a worker writes the stacks of all its threads to standard error.
STACKS = signal.SIGUSR1


class PartProgress(Protocol):
    """Progress of a job in parts, each of which has the job's time limit."""

    def __call__(self, line: str) -> None:
        """Report a line."""

    def next_part(self) -> None:
        """Announce that a part begins."""


class _Unheard:
    """Progress that nobody reads."""

    def __call__(self, line: str) -> None:
        """Drop a line."""

    def next_part(self) -> None:
        """Do nothing."""


UNHEARD: PartProgress = _Unheard()


class Request(Generic[Response]):
    """Base class of the frozen record that asks for one job; its type argument is the record that answers it."""


# The function that does each job, by the type of its request; it gives the response that the request names.
Jobs = Mapping[type[Request[object]], Callable[..., object]]


def silent(work: Callable[[Any], Any]) -> Callable[[Any, Progress], Any]:
    """Return a job that reports no progress."""

    @functools.wraps(work)
    def run(request: Any, progress: Progress) -> Any:
        return work(request)

    return run


def response_type(request: type[Request[Response]]) -> type[Response]:
    """The record that answers a request, as its base class names it."""
    (base,) = request.__orig_bases__  # type: ignore[attr-defined]  # of every generic's subclass
    return cast(type[Response], get_args(base)[0])


def write_request(request: Request[object]) -> str:
    return json.dumps({"job": type(request).__name__, "arguments": to_plain(request)})


class _Replies:
    """Progress on a pipe."""

    def __init__(self, replies: TextIO) -> None:
        self._replies = replies

    def __call__(self, line: str) -> None:
        self._replies.write(json.dumps({"progress": line}) + "\n")

    def next_part(self) -> None:
        self._replies.write(json.dumps({"part": True}) + "\n")


def serve(jobs: Jobs) -> None:
    """Answer requests from standard input until it closes.

    A request is answered by `{"result": {...}}`, or by `{"error": ONE LINE, "input": ..., "full_disk": ..., "trace":
    ...}`, where `input` is true for an error of the user's input and `full_disk` for one that concerns all jobs.
    `{"progress": LINE}` may come in between, and `{"part": true}` before each part of a job. Whatever the work prints
    goes to standard error, and the stacks of all threads at the signal `STACKS`.
    """
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    faulthandler.register(STACKS)
    types, progress = {kind.__name__: kind for kind in jobs}, _Replies(replies)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            kind = types[asked["job"]]
            result = jobs[kind](from_plain(kind, asked["arguments"]), progress)
            reply = json.dumps({"result": to_plain(result)}, allow_nan=False)
        except Exception as error:
            full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
            of = {"input": isinstance(error, InputError), "full_disk": full or isinstance(error, FullDiskError)}
            reply = json.dumps({"error": one_line(error), **of, "trace": traceback.format_exc()})
        replies.write(reply + "\n")
