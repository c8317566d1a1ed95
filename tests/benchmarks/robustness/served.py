"""A served DCN-V2 of the size of a baseline, and what the system knows of its process."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from objectives.measurement.load_generator import Request
from objectives.records import InputSpec
from objectives.serving.bundle import write_bundle
from spaces.candidate import Candidate
from spaces.techniques.placement import InstanceGroup, Placement
from tests.benchmarks.robustness.load import Load, Phase

PLACEMENT = Placement(InstanceGroup(threads=1))
INLINE = Placement(InstanceGroup(threads=1), inline=True)
# Requests that are drawn from.
_REQUESTS = 100
# Share of the capacity at which the SLO is found, and how long that takes.
_USUAL, _USUAL_SECONDS = 0.5, 8.0
_MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Material:
    """Model that is served: its file and placement, its inputs, and requests."""

    model: Path
    placement: Placement
    inputs: Sequence[InputSpec]
    requests: Sequence[Request]

    @classmethod
    def make(cls, folder: Path, rows: int, student: bool) -> Material:
        """Export an untrained model, and draw requests of so many rows."""
        # Loads torch, which the process of the load does without.
        from objectives.recommenders.families.dcn_v2 import BASELINE
        from tests.benchmarks.models import FIELDS, STUDENT, USER_FIELDS, request, write_model

        random = np.random.default_rng(0)
        inputs = [InputSpec(n, "int64", (), size, "user" if n in USER_FIELDS else "item") for n, size in FIELDS.items()]
        requests = [dict(request(rows, random)) for _ in range(_REQUESTS)]
        model = write_model(folder / "model", STUDENT if student else BASELINE)
        return cls(model, INLINE if student else PLACEMENT, inputs, requests)

    def bundle(self, folder: Path, name: str = "measured") -> Path:
        """Write a bundle, in place of one that is there, as a whole."""
        made = folder.with_name(f"{folder.name}-new")
        # The card is part of the version.
        card = f"# {name}\n"
        candidate = Candidate(placement=self.placement)
        write_bundle(made, "measured", self.model, candidate, {}, self.inputs, card, self.requests[0])
        if folder.exists():
            old = folder.with_name(f"{folder.name}-old")
            folder.rename(old)
            made.rename(folder)
            shutil.rmtree(old)
        else:
            made.rename(folder)
        return folder


@dataclass(frozen=True)
class Limits:
    """Capacity of a server, and what it has to keep.

    slo_ms: twice the p95 at half of the capacity
    """

    capacity_rps: float
    slo_ms: float


def find_limits(load: Load, url: str, seconds: float) -> Limits:
    """Measure the capacity of a server without admission limits, and its p95 at half of that."""
    capacity = load.capacity(url, seconds)
    usual = load.play(url, [Phase(_USUAL * capacity, _USUAL_SECONDS)], 1).result()
    return Limits(capacity, 2 * usual.accepted_ms(95))


@dataclass(frozen=True)
class Reading:
    """Reading of a process: seconds of the monotonic clock, resident MiB, open files, threads."""

    at_s: float
    resident_mib: float
    files: int
    threads: int


def read_process(pid: int) -> Reading:
    """Read the state of a process from /proc."""
    process = Path(f"/proc/{pid}")
    pages = int((process / "statm").read_text().split()[1])
    resident = pages * os.sysconf("SC_PAGE_SIZE") / _MEBIBYTE
    files, threads = (len(list((process / kind).iterdir())) for kind in ("fd", "task"))
    return Reading(time.monotonic(), resident, files, threads)


@contextmanager
def readings(pid: int, every_s: float) -> Iterator[list[Reading]]:
    """Read a process again and again until the end of the block."""
    found, stop = list[Reading](), threading.Event()

    def read() -> None:
        while not stop.wait(every_s):
            found.append(read_process(pid))

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()
