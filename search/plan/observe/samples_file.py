"""Samples of a server in a file of JSON lines, which an observation appends to and a later one reads."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from planning.observation.metrics_samples import MetricsSample
from search.errors import ConfigError, JobError

SUFFIX = ".jsonl"
_NUMBERS = tuple(each.name for each in dataclasses.fields(MetricsSample) if each.name not in ("buckets", "started_s"))
_TAIL_BYTES = 1 << 16


def append_sample(path: Path, url: str, sample: MetricsSample) -> None:
    """Append a sample of a server; it is in the file when this returns, also if the process is killed then.

    What a process that died left of a line is cut off first.

    Raises:
        ConfigError: the file has samples of another server, which a process that began at the same time may write.
        JobError: the file cannot be written.
    """
    values = {name: getattr(sample, name) for name in ("started_s", *_NUMBERS)}
    record = {"url": url, **values, "buckets": {str(limit): count for limit, count in sample.buckets.items()}}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            _cut_torn_line(file)
            file.seek(0)
            if first := file.readline():
                _check_server(_parsed_line(first, 1, path, "--samples")[0], url, path)
            file.write((json.dumps(record, allow_nan=False) + "\n").encode())
    except OSError as error:
        raise JobError(f"--samples: {error}") from error


def _cut_torn_line(file: BinaryIO) -> None:
    size = file.seek(0, os.SEEK_END)
    start = max(0, size - _TAIL_BYTES)
    file.seek(start)
    tail = file.read()
    if tail and not tail.endswith(b"\n"):
        file.truncate(start + tail.rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)


def check_appendable(path: Path, url: str) -> None:
    """Raise ConfigError unless a file may take samples of a server: it is new, empty, or has samples of it alone.

    The whole file is read, since an observation of a week shall not end with an error that was there before it.
    """
    if path.suffix != SUFFIX:
        raise ConfigError(f"--samples: must be a file with the suffix {SUFFIX}, but got {path}")
    if not path.exists() or _has_no_line(path, url):
        return
    for found, _ in read_samples(path, "--samples"):
        _check_server(found, url, path)


def _has_no_line(path: Path, url: str) -> bool:
    """Return whether a file is empty, or has only what a process that died left of the first line of a server."""
    begin = json.dumps({"url": url}).removesuffix("}").encode()
    try:
        with path.open("rb") as file:
            first = file.readline(_TAIL_BYTES)
    except OSError as error:
        raise ConfigError(f"--samples: must be a file of samples, but {error}") from error
    is_torn = not first.endswith(b"\n") and len(first) < _TAIL_BYTES
    return is_torn and (first.startswith(begin) or begin.startswith(first))


def _check_server(found: str, url: str, path: Path) -> None:
    if found != url:
        raise ConfigError(f"--samples: must be a file of {url}, but {path} has samples of {found}")


def read_samples(path: Path, option: str) -> Iterator[tuple[str, MetricsSample]]:
    """Read the samples of one server with its URL, at least one; what a process that died left of a line is left out.

    Raises:
        ConfigError: the file cannot be read, has none, or has something else; the message begins with `option`.
    """
    first: str | None = None
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                url, sample = _parsed_line(line, number, path, option)
                first = url if first is None else first
                if url != first:
                    raise ConfigError(
                        f"{option}: {path}: line {number}: must be a sample of {first}, but is one of {url}"
                    )
                yield url, sample
    except OSError as error:
        raise ConfigError(f"{option}: must be a file of samples, but {error}") from error
    if first is None:
        raise ConfigError(f"{option}: must have samples of leanrec observe, but {path} has none")


def _parsed_line(line: bytes, number: int, path: Path, option: str) -> tuple[str, MetricsSample]:
    try:
        return _parsed(line)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{option}: {path}: line {number}: must be a sample as leanrec observe --samples writes it, but "
            f"{type(error).__name__}: {error}"
        ) from error


def _parsed(line: bytes) -> tuple[str, MetricsSample]:
    record = json.loads(line)
    started = record["started_s"]
    values = {name: _number(record[name]) for name in _NUMBERS}
    buckets = {float(limit): _number(count) for limit, count in record["buckets"].items()}
    if not isinstance(record["url"], str):
        raise ValueError(f"url is {record['url']!r}")
    return record["url"], MetricsSample(
        **values, started_s=None if started is None else _number(started), buckets=buckets
    )


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{value!r} is no number, at least 0")
    return float(value)
