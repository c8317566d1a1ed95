"""Policies of a replay: each on the virtual clock, and on a real server where there are bundles."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from objectives.measurement.load_generator import Request
from objectives.measurement.service_curve import OutsideRangeError
from objectives.serving.bundle import read_bundle
from objectives.serving.control.options import ControlPlan, Option
from objectives.serving.control.windows import KPA, Windows
from objectives.serving.pool.virtual_pool import ServiceTime
from planning.capacity import Objective
from planning.demand import Counts, Floats
from planning.elastic import Served, machine_outcome, simulate_elastic
from search.bench.requests import draw_requests
from search.cli.console import Console
from search.errors import ConfigError, JobError
from search.plan.replay.document import ReplayDecision, ReplayRow, intervals_of
from search.plan.replay.server import ServerSettings, sample_ms, serve_policy
from search.plan.replay.traffic import Traffic
from search.plan.replay.transport import DrawnTransport, Transport, TransportSample, travelled_s

VIRTUAL, SERVER = "virtual", "server"
# Seconds of requests that are sent before and after the policies to know what transport takes, at each rate.
_SAMPLE_SECONDS = 20.0


@dataclass(frozen=True, eq=False)
class PolicyReplays:
    """Replays of policies on one machine.

    control: the plan in compressed time
    largest: the plan of a single option, on which transport is measured
    service: service time of an option on the machine
    price: of a core and hour
    """

    settings: ServerSettings
    traffic: Traffic
    control: ControlPlan
    largest: ControlPlan
    service: Callable[[Option], ServiceTime]
    cores: int
    price: float
    objective: Objective
    seed: int
    console: Console

    def rows(self, policies: Mapping[str, ControlPlan]) -> Iterator[ReplayRow]:
        """Yield each policy's row on the virtual clock, followed by that on a server."""
        on_servers, transport = dict[str, ReplayRow](), None
        if self.settings.bundles:
            on_servers, transport = self._on_servers(policies)
        for name, policy in policies.items():
            yield self._on_virtual_clock(name, policy, transport)
            if name in on_servers:
                yield on_servers[name]

    def _on_servers(self, policies: Mapping[str, ControlPlan]) -> tuple[dict[str, ReplayRow], DrawnTransport]:
        """Serve the policies one after another; return their rows, and the transport of these minutes."""
        self.settings.folder.mkdir(parents=True, exist_ok=True)
        seconds = self.traffic.seconds
        requests = draw_requests(read_bundle(self.settings.bundles[0]).inputs, self.traffic.rows, self.seed)

        def sample(rate_rps: float) -> TransportSample:
            found = self._sample(requests, rate_rps)
            self.console.say(f"transport: {np.median(found.usual_ms):.3g} ms of a request at {rate_rps:.3g} requests/s")
            return found

        transport, rows = Transport.measured(seconds, sample), dict[str, ReplayRow]()
        for name, policy in policies.items():
            file = name.replace(", ", "-").replace(" + ", "-and-")
            served, decisions = serve_policy(self.settings, file, policy, requests, seconds)
            rows[name] = self._row(name, SERVER, policy, served, decisions, 0.0)
        try:
            transport = transport.measured_again(sample)
        except (JobError, ConfigError) as error:  # what was served is worth more than a second sample
            self.console.warn(f"transport was not measured after the policies: {error}")
        return rows, transport.drawn(seconds, self.seed)

    def _on_virtual_clock(self, name: str, policy: ControlPlan, transport: DrawnTransport | None) -> ReplayRow:
        """Simulate a policy; requests reach the pool at once where there is no transport."""
        seconds, settings = self.traffic.seconds, self.settings
        to_pool_s, transport_ms = np.zeros(len(seconds)), 0.0
        if transport is not None:
            to_pool_s, transport_ms = travelled_s(seconds, transport), float(np.median(transport.usual_ms))
        served = self._simulated(
            policy, settings.windows, seconds + to_pool_s, self.traffic.rows, settings.begins_s, settings.end_s
        )
        decisions = [
            ReplayDecision(second=each.now_s, option=policy.options[each.option].name, reason=str(each.reason))
            for each in served.decisions
        ]
        travelled = replace(served, latency_ms=served.latency_ms + 1e3 * to_pool_s)
        return self._row(name, VIRTUAL, policy, travelled, decisions, transport_ms)

    def _row(
        self,
        name: str,
        clock: str,
        policy: ControlPlan,
        served: Served,
        decisions: Sequence[ReplayDecision],
        transport_ms: float,
    ) -> ReplayRow:
        begins_s, end_s = self.settings.begins_s, self.settings.end_s
        outcome = machine_outcome(served, policy.options, end_s, self.objective, self.price)
        self.console.say(f"{name}, {clock}: {outcome.late:.2%} late, {outcome.replica_seconds:,.0f} replica-seconds")
        return ReplayRow(
            policy=name,
            clock=clock,
            decisions=tuple(decisions),
            intervals=intervals_of(
                served,
                self.traffic.seconds,
                policy.options,
                end_s,
                self.objective.slo_ms,
                lambda second: self.control.capacity_factor(begins_s + second),
            ),
            transport_ms=transport_ms,
            **vars(outcome),
        )

    def _sample(self, requests: Sequence[Request], rate_rps: float) -> TransportSample:
        """Measure what requests take on a server beyond the pool's simulated times.

        They come at random: client, server and model want the cores at the same moments, which no measurement of one
        of them sees. The n-th fastest on both sides belong together, since one side's request is not the other's.
        """
        first = requests[: max(round(_SAMPLE_SECONDS * rate_rps), 1)]
        gaps_s = np.random.default_rng(self.seed).exponential(1 / rate_rps, len(first))
        seconds = gaps_s.cumsum()
        simulated = self._simulated(self.largest, KPA, seconds, self.traffic.rows[: len(first)]).latency_ms
        served = sample_ms(self.settings, self.largest, first, gaps_s)
        answered = np.isfinite(served) & np.isfinite(simulated)
        if not answered.any():
            raise ConfigError("--with-bundle: must be of points that answer a single request, but all were refused")
        beyond_ms, order = np.zeros(int(answered.sum())), np.argsort(served[answered], kind="stable")
        beyond_ms[order] = np.maximum(np.sort(served[answered]) - np.sort(simulated[answered]), 0.0)
        return TransportSample.of(seconds[answered], beyond_ms)

    def _simulated(
        self,
        policy: ControlPlan,
        windows: Windows,
        seconds: Floats,
        rows: Counts,
        begins_s: float = 0.0,
        end_s: float = 0.0,
    ) -> Served:
        try:
            return simulate_elastic(policy, windows, seconds, rows, self.service, self.cores, begins_s, end_s)
        except OutsideRangeError as error:
            raise ConfigError(f"--trace: must have requests of sizes that the study measured, but: {error}") from error
