"""Replay of a trace on one machine of a plan.

Every policy is replayed on the virtual clock, and on a real server where there are bundles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from objectives.serving.control.options import ControlPlan, Option
from objectives.serving.control.plan_file import machine_plan, offers_on, options_of, planned_phases, repeats_after
from objectives.serving.pool.virtual_pool import ServiceTime
from planning.capacity import Objective, service_of
from planning.elastic import STATIC_PEAK, policies
from planning.fleet import Deployment
from search.cli.console import Console
from search.errors import ConfigError
from search.home import write_json
from search.plan.deployments import menu_of
from search.plan.inputs import read_log
from search.plan.plan_file import read_plan
from search.plan.replay.document import ReplayDocument
from search.plan.replay.policy_replays import PolicyReplays
from search.plan.replay.request import ReplayRequest
from search.plan.replay.server import ServerSettings
from search.plan.replay.traffic import traffic_of
from search.session import Session
from spaces.serialization import Json, to_plain

FILE, PAGE = "replay.json", "replay.html"


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
    traffic = traffic_of(document, offers, log, menu, request)
    console.say(f"replay: {len(traffic.seconds):,} requests in {traffic.end_s:.0f} s")
    offer = next(one for one in document["offers"] if one["machine"] == machine)
    windows, compared = request.compressed_windows, policies(control)
    replays = PolicyReplays(
        settings=ServerSettings(
            document=document,
            machine=machine,
            bundles=request.bundles,
            windows=windows,
            speed=request.speed,
            folder=out / "servers",
            begins_s=traffic.begins_s,
            end_s=traffic.end_s,
        ),
        traffic=traffic,
        control=control,
        largest=compared[STATIC_PEAK],
        service=_services(menu.deployments, offer["machine_speed"], request.seed),
        cores=offer["machine_cores"],
        price=offer["price_per_hour"] / offer["machine_cores"],
        objective=Objective(document["slo_ms"], document["percent"]),
        seed=request.seed,
        console=console,
    )
    chosen = {name: one for name, one in compared.items() if not request.policies or name in request.policies}
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
        rows=tuple(replays.rows(chosen)),
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


def _services(deployments: Sequence[Deployment], speed: float, seed: int) -> Callable[[Option], ServiceTime]:
    """Return the service time of an option, by the deployment of its variant."""
    known = {each.name: each for each in deployments}

    def service(option: Option) -> ServiceTime:
        if option.variant not in known:
            raise ConfigError(f"--plan: must be of points that the study has, but {option.variant} is none of them")
        return service_of(replace(known[option.variant], placement=option.placement), speed, seed)

    return service
