"""Replay of a trace on one machine of a plan.

Every policy is replayed on the virtual clock, and on a real server where there are bundles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from objectives.measurement.load_generator import Request
from objectives.measurement.request_log import RequestLog
from objectives.measurement.service_curve import OutsideRangeError
from objectives.serving.bundle import read_bundle
from objectives.serving.control.options import ControlPlan, Option
from objectives.serving.control.plan_file import (
    machine_plan,
    offers_on,
    options_of,
    planned_phases,
    repeats_after,
    starts_at,
)
from objectives.serving.control.windows import KPA, Windows
from objectives.serving.pool.virtual_pool import ServiceTime
from planning.capacity import Objective, service_of
from planning.demand import Counts, Floats
from planning.elastic import STATIC_PEAK, MachineOutcome, Served, machine_outcome, policies, simulate_elastic
from planning.fleet import Deployment
from planning.machine_share import machine_share
from search.bench.requests import draw_requests
from search.cli.console import Console
from search.errors import ConfigError, JobError
from search.home import write_json
from search.plan.deployments import Menu, menu_of
from search.plan.inputs import read_log
from search.plan.plan_file import read_plan
from search.plan.replay.document import ReplayDecision, ReplayDocument, ReplayRow, intervals_of
from search.plan.replay.server import ServerSettings, sample_ms, serve_policy
from search.plan.replay.transport import Transport, TransportSample, travelled_s
from search.session import Session
from spaces.serialization import Json, to_plain

FILE, PAGE = "replay.json", "replay.html"
VIRTUAL, SERVER = "virtual", "server"
# Seconds of requests that are sent before and after the policies to know what transport takes, at each rate.
_SAMPLE_SECONDS = 20.0
# A replay that begins with a phase begins so much later, lest rounding puts its begin into the phase before.
_ROUNDING_S = 1e-6


@dataclass(frozen=True)
class ReplayRequest:
    """Options of a replay.

    machine: kind of machine, None where the plan has a single one
    bundles: of all variants; none for the virtual clock alone
    policies: names, none for all
    speed: 1 or more
    windows: of the trace's own time
    """

    trace: Path
    plan: Path
    rows_column: str | None
    machine: str | None
    bundles: tuple[Path, ...]
    policies: tuple[str, ...]
    speed: float
    windows: Windows = KPA
    seed: int = 0


@dataclass(frozen=True, eq=False)
class _Traffic:
    """Requests of the compressed time, (n,) each, and its end in seconds.

    begins_s: second of the plan, in compressed time, at which it begins
    """

    seconds: Floats
    rows: Counts
    end_s: float
    begins_s: float


def replay(session: Session, request: ReplayRequest, out: Path, console: Console) -> ReplayDocument:
    """Replay, and write replay.json and replay.html into `out`.

    Raises:
        ConfigError, InputError: an input is wrong, or they do not fit one another.
        JobError: a server did not start, or a request failed.
    """
    document: Json = to_plain(read_plan(request.plan, "--plan"))
    offers = offers_on(document, request.machine)
    machine = next(iter(offers.values()))["machine"]
    control = _control(document, offers, machine, request)
    log = read_log(request.trace, "--trace", request.rows_column, request.seed)
    menu = menu_of(session, console)
    traffic = _traffic(document, offers, log, menu, request)
    console.say(f"replay: {len(traffic.seconds):,} requests in {traffic.end_s:.0f} s")
    rows = tuple(_rows(document, machine, control, menu, traffic, request, out, console))
    windows = _compressed(request)
    found = ReplayDocument(
        study=session.config.name,
        trace=str(request.trace),
        plan=str(request.plan),
        machine=machine,
        speed=request.speed,
        seed=request.seed,
        slo_ms=document["slo_ms"],
        percent=document["percent"],
        requests=len(traffic.seconds),
        seconds=traffic.end_s,
        windows=(windows.stable_s, windows.panic_s, windows.tick_s),
        rows=rows,
    )
    write_json(found, out / FILE)
    from search.plan.replay.page import write_page  # plotly is loaded last

    write_page(found, out / PAGE)
    return found


def _control(document: Json, offers: dict[int, Json], machine: str, request: ReplayRequest) -> ControlPlan:
    """Return the plan in compressed time; loads take as long as they do."""
    repeat_s = repeats_after(document)
    repeat_s = None if repeat_s is None else repeat_s / request.speed
    if request.bundles:
        found = machine_plan(document, machine, request.bundles).control
        return replace(found, phase_s=found.phase_s / request.speed, repeat_s=repeat_s)
    options = tuple(option for offer in offers.values() for option in options_of(offer, document["slo_ms"]))
    if not options:
        raise ConfigError(f"--plan: must offer a point that keeps its SLO on {machine!r}, but has none")
    phases, allowed = planned_phases(document, offers), 1 - document["percent"] / 100
    phase_s = document["phase_seconds"] / request.speed
    return ControlPlan(options, phases, phase_s, repeat_s, document["slo_ms"], allowed)


def _traffic(document: Json, offers: dict[int, Json], log: RequestLog, menu: Menu, request: ReplayRequest) -> _Traffic:
    """Return the machine's share of the trace within the plan, in compressed time, from the first request on.

    Where the plan is weekly, the trace keeps its own time of the week. A trace of other days begins with the plan. The
    machine has no share in phases that machines of other kinds serve.

    Args:
        offers: on the machine's kind, by their number
    """
    machines = np.array([phase["machines"] * (phase["offer"] in offers) for phase in document["phases"]])
    phase_s = document["phase_seconds"]
    repeat_s = repeats_after(document)
    plan_s = len(machines) * phase_s if repeat_s is None else math.inf
    ahead = _ahead(document, log, plan_s)
    seconds = log.seconds + ahead  # of the plan
    rows = np.random.default_rng(request.seed).choice(menu.rows, len(seconds)) if log.rows is None else log.rows
    within = (seconds >= 0) & (seconds < plan_s)
    of_phases = seconds[within] if repeat_s is None else seconds[within] % repeat_s
    # The last phase of a week may end a little before it.
    numbers = np.minimum((of_phases / phase_s).astype(np.int64), len(machines) - 1)
    if not within.any():
        raise _no_requests(request.trace)
    begins_s = float(seconds[within][0])
    kept, sizes = machine_share(
        seconds[within] - begins_s, rows[within], machines[numbers], request.speed, request.seed
    )
    if not len(kept):
        raise _no_requests(request.trace)
    end_s = (min(plan_s, float(seconds[-1])) - begins_s) / request.speed
    if end_s <= 0:
        raise ConfigError(f"--trace: must have requests at two moments of the plan, but {request.trace} has one")
    return _Traffic(kept, sizes, end_s, begins_s / request.speed + _ROUNDING_S * (begins_s > 0))


def _no_requests(trace: Path) -> ConfigError:
    return ConfigError(
        f"--trace: must have requests in the phases of the plan that the machine serves, but {trace} has none"
    )


def _ahead(document: Json, log: RequestLog, plan_s: float) -> float:
    """Return the second of a plan of so many seconds at which a trace begins; 0 where the trace is of other days."""
    begins, starts, repeat_s = log.start_s, starts_at(document), repeats_after(document)
    ahead = 0.0 if begins is None or starts is None else begins - starts
    if repeat_s is not None:
        ahead %= repeat_s
    return ahead if -float(log.seconds[-1]) < ahead < plan_s else 0.0


def _compressed(request: ReplayRequest) -> Windows:
    windows = request.windows
    times = {name: getattr(windows, name) / request.speed for name in ("stable_s", "panic_s", "tick_s")}
    return replace(windows, **times)


def _rows(
    document: Json,
    machine: str,
    control: ControlPlan,
    menu: Menu,
    traffic: _Traffic,
    request: ReplayRequest,
    out: Path,
    console: Console,
) -> Iterator[ReplayRow]:
    windows, objective = _compressed(request), Objective(document["slo_ms"], document["percent"])
    offer = next(one for one in document["offers"] if one["machine"] == machine)
    price = offer["price_per_hour"] / offer["machine_cores"]
    cores, service = offer["machine_cores"], _services(menu.deployments, offer["machine_speed"], request.seed)
    settings = ServerSettings(
        document, machine, request.bundles, windows, request.speed, out / "servers", traffic.begins_s, traffic.end_s
    )

    def row(
        name: str, clock: str, policy: ControlPlan, served: Served, told: Sequence[ReplayDecision], transport_ms: float
    ) -> ReplayRow:
        outcome: MachineOutcome = machine_outcome(served, policy.options, traffic.end_s, objective, price)
        intervals = intervals_of(
            served,
            traffic.seconds,
            policy.options,
            traffic.end_s,
            objective.slo_ms,
            lambda second: control.capacity_factor(traffic.begins_s + second),
        )
        console.say(f"{name}, {clock}: {outcome.late:.2%} late, {outcome.replica_seconds:,.0f} replica-seconds")
        return ReplayRow(
            policy=name,
            clock=clock,
            decisions=tuple(told),
            intervals=intervals,
            transport_ms=transport_ms,
            **vars(outcome),
        )

    compared = policies(control)
    chosen = {name: one for name, one in compared.items() if not request.policies or name in request.policies}
    to_pool_s, transport_ms, real = np.zeros(len(traffic.seconds)), 0.0, dict[str, ReplayRow]()
    if request.bundles:
        settings.folder.mkdir(parents=True, exist_ok=True)
        requests = draw_requests(read_bundle(request.bundles[0]).inputs, traffic.rows, request.seed)

        def sample(rate_rps: float) -> TransportSample:
            first = slice(max(round(_SAMPLE_SECONDS * rate_rps), 1))
            gaps_s = np.random.default_rng(request.seed).exponential(1 / rate_rps, len(requests[first]))
            of = requests[first], traffic.rows[first], gaps_s
            found = _transport(settings, compared[STATIC_PEAK], *of, service, cores)
            console.say(f"transport: {np.median(found.usual_ms):.3g} ms of a request at {rate_rps:.3g} requests/s")
            return found

        transport = Transport.measured(traffic.seconds, sample)
        for name, policy in chosen.items():
            file = name.replace(", ", "-").replace(" + ", "-and-")
            told = serve_policy(settings, file, policy, requests, traffic.seconds)
            real[name] = row(name, SERVER, policy, *told, 0.0)
        try:
            transport = transport.measured_again(sample)
        except (JobError, ConfigError) as error:  # what was served is worth more than a second sample
            console.warn(f"transport was not measured after the policies: {error}")
        drawn = transport.drawn(traffic.seconds, request.seed)
        to_pool_s, transport_ms = travelled_s(traffic.seconds, drawn), float(np.median(drawn.usual_ms))
    for name, policy in chosen.items():
        arrivals = traffic.seconds + to_pool_s
        times_s = traffic.begins_s, traffic.end_s
        served = _simulated(policy, windows, arrivals, traffic.rows, service, cores, *times_s)
        virtual = replace(served, latency_ms=served.latency_ms + 1e3 * to_pool_s)
        yield row(name, VIRTUAL, policy, virtual, _decisions(served, policy), transport_ms)
        if name in real:
            yield real[name]


def _transport(
    settings: ServerSettings,
    static: ControlPlan,
    requests: Sequence[Request],
    rows: Counts,
    gaps_s: Floats,
    service: Callable[[Option], ServiceTime],
    cores: int,
) -> TransportSample:
    """Measure what requests take on a server beyond the pool's simulated times.

    They come at random: client, server and model want the cores at the same moments, which no measurement of one of
    them sees. The n-th fastest on both sides belong together, since one side's request is not the other's.

    Args:
        gaps_s: (requests,) seconds before each request
    """
    seconds = gaps_s.cumsum()
    simulated = _simulated(static, KPA, seconds, rows, service, cores).latency_ms
    served = sample_ms(settings, static, requests, gaps_s)
    answered = np.isfinite(served) & np.isfinite(simulated)
    if not answered.any():
        raise ConfigError("--with-bundle: must be of points that answer a single request, but all were refused")
    beyond_ms, order = np.zeros(int(answered.sum())), np.argsort(served[answered], kind="stable")
    beyond_ms[order] = np.maximum(np.sort(served[answered]) - np.sort(simulated[answered]), 0.0)
    return TransportSample.of(seconds[answered], beyond_ms)


def _simulated(
    policy: ControlPlan,
    windows: Windows,
    seconds: Floats,
    rows: Counts,
    service: Callable[[Option], ServiceTime],
    cores: int,
    begins_s: float = 0.0,
    end_s: float = 0.0,
) -> Served:
    try:
        return simulate_elastic(policy, windows, seconds, rows, service, cores, begins_s, end_s)
    except OutsideRangeError as error:
        raise ConfigError(f"--trace: must have requests of sizes that the study measured, but: {error}") from error


def _decisions(served: Served, policy: ControlPlan) -> list[ReplayDecision]:
    return [
        ReplayDecision(second=each.now_s, option=policy.options[each.option].name, reason=str(each.reason))
        for each in served.decisions
    ]


def _services(deployments: Sequence[Deployment], speed: float, seed: int) -> Callable[[Option], ServiceTime]:
    """Return the service time of an option, by the deployment of its variant."""
    known = {each.name: each for each in deployments}

    def service(option: Option) -> ServiceTime:
        if option.variant not in known:
            raise ConfigError(f"--plan: must be of points that the study has, but {option.variant} is none of them")
        return service_of(replace(known[option.variant], placement=option.placement), speed, seed)

    return service
