"""Cost of candidates, simulated from service curves: each is measured once, and serves every placement of its graph."""

from __future__ import annotations

import contextlib
import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from objectives.held_out_rows import read_requests
from objectives.jobs.requests import ServiceCurveRequest, ServiceCurveResponse, TransportResponse
from objectives.measure.deployment import saturating
from objectives.measure.virtual_target import SimulatedLoad, VirtualTarget
from objectives.measurement.load_generator import Request
from objectives.measurement.service_curve import ServiceCurve
from objectives.records import Artifact, SimulatedRatios, rows_of
from search.errors import JobError
from search.workers.meter_jobs import CurvePart, MeterJobs, curve_parts
from search.workers.paired_comparison import PairedComparison
from search.workers.processes import call
from spaces.candidate import Candidate
from spaces.serialization import Json, digest, from_plain, to_plain

# The candidate whose curve is measured first, and so many times, since every ratio is to it.
BASELINE = Candidate()
_TIMES = 5


class CostModel:
    """Service curves of a study, and the ratios that are simulated with them.

    The curves are kept in a file of lines that is read again when the study goes on.

    The baseline's own curve is the first: the machine's pace then is that of its reference speed, to which every later
    curve is scaled. Where requests go through HTTP, what that adds is measured once, on the baseline, and every
    deployment has it: one request travels at a time, in a fixed time.
    """

    def __init__(self, jobs: MeterJobs, file: Path) -> None:
        """Read the curves that are known."""
        self._jobs, self._file = jobs, file
        self._curves: dict[str, ServiceCurve] = {}
        self._model_bytes: dict[str, int | None] = {}
        self._reference_pace_ms: float | None = None
        self._baseline_key = _key(BASELINE, *curve_parts(BASELINE.placement))
        self._transport: TransportResponse | None = None
        self._ratios: dict[str, SimulatedRatios | str] = {}
        for line in file.read_text().splitlines() if file.exists() else ():
            with contextlib.suppress(ValueError):  # a line that a kill left unfinished
                known = json.loads(line)
                if "transport" in known:
                    self._transport = from_plain(TransportResponse, known["transport"])
                else:
                    self._keep(known["key"], from_plain(ServiceCurveResponse, known["measured"]))

    def missing(self, candidate: Candidate) -> tuple[CurvePart, ...]:
        """Return the parts of a candidate whose service curves are to be measured, after the baseline's own."""
        return tuple(part for part in curve_parts(candidate.placement) if _key(candidate, part) not in self._curves)

    def curves(self, candidate: Candidate) -> tuple[ServiceCurve, ...]:
        """Return the service curve of each instance group of a candidate; KeyError where one was not measured."""
        return tuple(self._curves[_key(candidate, part)] for part in curve_parts(candidate.placement))

    def measure_baseline(self, pairs: PairedComparison) -> None:
        """Measure the baseline's own curve and what HTTP adds to it, where they are not known.

        What HTTP adds is measured only if requests go through it. Several curves are measured, each beside the
        machine's pace at that moment, whose median is that of the reference speed: at that speed, the curve with the
        middle p95 is kept.

        Raises:
            JobError: it cannot be measured.
        """
        if (asked := self._jobs.transport()) is not None and self._transport is None:
            limit = self._jobs.config.workers.job_seconds
            self._transport = call(pairs.meter, asked, limit, pairs.console.say)
            self._write({"transport": to_plain(self._transport)})
        for part in self.missing(BASELINE):
            found = _at_one_speed(
                [self._measured(BASELINE, self._jobs.baseline[0], part, pairs) for _ in range(_TIMES)]
            )
            found.sort(key=lambda one: self._load_of(self._target_of(BASELINE, [one.curve])).baseline.p95_ms)
            self.learn(BASELINE, part, found[_TIMES // 2])

    def simulated(self, candidate: Candidate, pairs: PairedComparison) -> SimulatedRatios:
        """Return the simulated ratios of a candidate, whose curves are measured now where they are missing.

        Raises:
            ValueError: it cannot be built, run or simulated.
        """
        try:
            artifact = pairs.built(candidate)
            for part in self.missing(candidate):
                self.learn(candidate, part, self._measured(candidate, artifact, part, pairs))
        except JobError as error:
            raise ValueError(str(error)) from error
        return self.ratios(candidate)

    def _measured(
        self, candidate: Candidate, artifact: Artifact, part: CurvePart, pairs: PairedComparison
    ) -> ServiceCurveResponse:
        limit = self._jobs.config.workers.job_seconds
        return call(pairs.meter, self.request(artifact, candidate, part), limit, pairs.console.say)

    def request(self, artifact: Artifact, candidate: Candidate, part: CurvePart) -> ServiceCurveRequest:
        """Return the request for a curve; the model file may be of untrained weights."""
        times = self.baseline_ms, self.transport_ms, self._reference_pace_ms
        return self._jobs.service_curve((artifact, candidate), part, *times)

    @property
    def baseline_ms(self) -> float | None:
        """Milliseconds of a request to the baseline's pool, at the reference speed; None before its curve is known."""
        return None if self.missing(BASELINE) else self._load.baseline_ms - self.transport_ms

    @property
    def reference_pace_ms(self) -> float | None:
        """The machine's pace, in milliseconds, at its reference speed; None before the baseline's curve is known."""
        return self._reference_pace_ms

    def learn(self, candidate: Candidate, part: CurvePart, measured: ServiceCurveResponse) -> None:
        """Keep a curve, in the file too."""
        key = _key(candidate, part)
        self._keep(key, measured)
        self._write({"key": key, "measured": to_plain(measured)})

    def _write(self, line: Json) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a") as lines:
            # A line that a kill left unfinished ends here.
            lines.write("\n" + json.dumps(line))

    def ratios(self, candidate: Candidate) -> SimulatedRatios:
        """Return the simulated ratios of a candidate whose curves are known.

        Raises:
            ValueError: it cannot be simulated, since a run has a size for which no time was measured.
        """
        key = candidate.untrained.id
        if key not in self._ratios:
            try:
                simulated = self._load.ratios(self._target(candidate))
                self._ratios[key] = replace(simulated, model_bytes=self._bytes_of(candidate))
            except ValueError as error:  # a size without a time, or a number that is not finite
                self._ratios[key] = str(error)
        found = self._ratios[key]
        if isinstance(found, str):
            raise ValueError(found)
        return found

    def _keep(self, key: str, measured: ServiceCurveResponse) -> None:
        if key == self._baseline_key:
            self._reference_pace_ms = measured.pace_ms
        self._curves[key], self._model_bytes[key] = measured.curve, measured.model_bytes

    def _bytes_of(self, candidate: Candidate) -> int | None:
        """Return the bytes of a candidate's model file, which all its instance groups run."""
        return self._model_bytes[_key(candidate, curve_parts(candidate.placement)[0])]

    def _target(self, candidate: Candidate) -> VirtualTarget:
        return self._target_of(candidate, self.curves(candidate))

    def _target_of(self, candidate: Candidate, curves: Sequence[ServiceCurve]) -> VirtualTarget:
        placement, seed = candidate.placement, self._jobs.config.seed
        if self._transport is not None:
            # Whoever sends a request to a server does not wait until the run of another one is over.
            placement = replace(placement, inline=False)
        outstanding = saturating(placement, self._requests)
        return VirtualTarget.of(placement, curves, seed, outstanding, self.transport_ms)

    @property
    def transport_ms(self) -> float:
        """Milliseconds that HTTP adds at the machine's reference speed; 0 where requests go to the pool directly.

        Before that speed is known, they are those of the time when they were measured.
        """
        if self._transport is None:
            return 0.0
        if self._reference_pace_ms is None:
            return self._transport.transport_ms
        return self._transport.transport_ms * self._reference_pace_ms / self._transport.pace_ms

    @cached_property
    def _load(self) -> SimulatedLoad:
        return self._load_of(self._target(BASELINE))

    def _load_of(self, baseline: VirtualTarget) -> SimulatedLoad:
        return SimulatedLoad.of(baseline, self._requests, self._jobs.load, self._jobs.config.seed)

    @cached_property
    def _requests(self) -> list[Request]:
        """Requests of the study's sizes: nothing but their rows counts on a virtual clock."""
        sizes = map(rows_of, read_requests(Path(self._jobs.prepared.holdout)))
        return [{"rows": np.empty(size, np.bool_)} for size in sizes]


def _at_one_speed(measured: Sequence[ServiceCurveResponse]) -> list[ServiceCurveResponse]:
    """Return the baseline's curves as of the median speed of the machine at which they were measured."""
    reference = statistics.median(one.pace_ms for one in measured)
    return [replace(one, curve=one.curve.scaled(reference / one.pace_ms), pace_ms=reference) for one in measured]


def _key(candidate: Candidate, part: CurvePart) -> str:
    """Identify a service curve by what it depends on, which trained weights are not part of."""
    return digest(candidate.untrained.variant_id, part)[:16]
