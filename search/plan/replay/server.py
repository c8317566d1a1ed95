"""A policy of a replay on a real server: the process, its plan, the requests, and what its timeline tells."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from objectives.measure.deployment import quiet
from objectives.measure.remote_model import RemoteModel
from objectives.measurement.load_generator import Request, closed_loop, open_loop
from objectives.serving.control.options import ControlPlan, Option
from objectives.serving.control.plan_file import machine_plan, options_of
from objectives.serving.control.windows import Windows
from planning.demand import Floats
from planning.elastic import Segment, Served
from search.errors import JobError
from search.home import write_json
from search.plan.replay.document import ReplayDecision

# Seconds from the start of a server to that of the requests; the next one is taken where a server was not up by then.
_STARTS = (4.0, 10.0, 30.0)
_STOP_SECONDS = 60.0
# Requests before those of a sample of transport, one at a time.
_WARM_UP = 200
# Seconds before the first request at which the server has to be up.
_EARLY = 0.3


@dataclass(frozen=True)
class ServerSettings:
    """Settings of the servers of a replay.

    document: the plan.json
    bundles: of all variants
    folder: for plans, timelines and logs
    begins_s: second of the plan, in compressed time, at which the replay begins
    end_s: compressed seconds from the begin to the end of the replay, until which the server is controlled
    """

    document: Mapping[str, Any]
    machine: str
    bundles: Sequence[Path]
    windows: Windows
    speed: float
    folder: Path
    begins_s: float
    end_s: float


def document_of(settings: ServerSettings, policy: ControlPlan, start_s: float) -> dict[str, Any]:
    """Return the plan.json that makes a server follow a policy.

    It has the policy's options alone, in compressed time. It has a date, also where the plan is weekly: the phase of
    the replay's begin is that of `start_s`, and of the time before it, in which the server is up already. Where the
    policy foresees nothing, it is over already, and its machine does not know how many others there are.

    Args:
        start_s: begin of the replay in seconds since the epoch
    """
    offers = []
    for offer in settings.document["offers"]:
        pairs = zip(options_of(offer, settings.document["slo_ms"]), _usable(offer), strict=True)
        if kept := [
            layout for option, layout in pairs if offer["machine"] == settings.machine and option in policy.options
        ]:
            offers.append({**offer, "layouts": kept})
    phases = settings.document["phases"]
    if not policy.phases:
        phases = [{**phase, "alone_rps": phase["capacity_rps"] / phase["machines"]} for phase in phases]
    return {
        **settings.document,
        "offers": offers,
        "phases": phases,
        "phase_seconds": settings.document["phase_seconds"] / settings.speed,
        "start_s": start_s - settings.begins_s if policy.phases else 0.0,
        "repeat_seconds": policy.repeat_s if policy.phases else None,
        "begins_seconds": settings.begins_s,
    }


def _usable(offer: Mapping[str, Any]) -> list[Any]:
    return [layout for layout in offer["layouts"] if layout["capacity_rps"] > 0]


def serve_policy(
    settings: ServerSettings, name: str, policy: ControlPlan, requests: Sequence[Request], seconds: Floats
) -> tuple[Served, tuple[ReplayDecision, ...]]:
    """Play requests to a server that follows a policy.

    Args:
        name: of the policy's files
        seconds: (requests,) ascending arrival times from the replay's begin

    Raises:
        JobError: the server did not start, or a request failed other than by a refusal.
    """
    timeline = settings.folder / f"{name}.timeline.jsonl"
    timeline.unlink(missing_ok=True)
    bundles = _needed(settings, policy)
    for margin_s in _STARTS:
        start_s = time.time() + margin_s
        plan = settings.folder / f"{name}.plan.json"
        write_json(document_of(settings, policy, start_s), plan)
        # Garbage is collected before the server starts, since it takes long beside the requests of a long trace.
        with quiet(), _serving(settings, bundles, plan, timeline, settings.folder / f"{name}.log") as url:
            if time.time() + _EARLY > start_s:
                continue
            with RemoteModel(url) as model:
                latency = _played(model, requests, seconds, start_s)
            time.sleep(max(start_s + settings.end_s - time.time(), 0.0))
        return _told(timeline, policy.options, start_s, settings.end_s, latency, seconds)
    raise JobError(f"a server needs more than {_STARTS[-1]:.0f} s to start: see {settings.folder}")


def sample_ms(settings: ServerSettings, static: ControlPlan, requests: Sequence[Request], gaps_s: Floats) -> Floats:
    """Measure the milliseconds of requests on a server of a plan with a single option.

    Raises:
        JobError: the server did not start, or a request failed.
    """
    plan, timeline, log = (settings.folder / f"sample.{end}" for end in ("plan.json", "timeline.jsonl", "log"))
    write_json(document_of(settings, static, 0.0), plan)
    with (
        quiet(),
        _serving(settings, _needed(settings, static), plan, timeline, log) as url,
        RemoteModel(url) as model,
    ):
        try:
            closed_loop(model.submit, requests[:_WARM_UP])
            gaps_ns = np.maximum(np.rint(gaps_s * 1e9), 1).astype(np.int64)
            return open_loop(model.submit, requests, gaps_ns).latency_ms
        except Exception as error:
            raise JobError(f"a request failed: {error}") from error


def _needed(settings: ServerSettings, policy: ControlPlan) -> Sequence[Path]:
    """Return the bundles of a policy: a server takes none of a point that its plan does not offer."""
    plan = machine_plan(dict(settings.document), settings.machine, settings.bundles)
    used = [
        folder for option, folder in zip(plan.control.options, plan.folders, strict=True) if option in policy.options
    ]
    return list(dict.fromkeys(used))


@contextmanager
def _serving(settings: ServerSettings, bundles: Sequence[Path], plan: Path, timeline: Path, log: Path) -> Iterator[str]:
    """Run `leanrec serve` until the end of the context, and give the URL of its model."""
    windows, (first, *others) = settings.windows, map(str, bundles)
    command = [sys.executable, _program(), "serve", first, "--port", "0", "--json", "--name", "replay"]
    command += ["--plan", str(plan), "--machine", settings.machine, "--timeline", str(timeline)]
    command += ["--windows", f"{windows.stable_s},{windows.panic_s},{windows.tick_s}"]
    command += [part for other in others for part in ("--variant", other)]
    with (
        log.open("w") as stream,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stream, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise JobError(f"a server did not start: {log.read_text().strip() or 'it says nothing'}")
            yield f"{json.loads(line)['url']}/v2/models/replay"
        finally:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _program() -> str:
    """Return the file of the command line that this process belongs to."""
    found = importlib.util.find_spec("leanrec")
    assert found is not None and found.origin is not None, "leanrec.py lies beside its packages"
    return found.origin


def _played(model: RemoteModel, requests: Sequence[Request], seconds: Floats, start_s: float) -> Floats:
    gaps_ns = np.maximum(np.rint(np.diff(seconds, prepend=0.0) * 1e9), 1).astype(np.int64)
    time.sleep(max(start_s - time.time(), 0.0))
    try:
        return open_loop(model.submit, requests, gaps_ns).latency_ms
    except Exception as error:
        raise JobError(f"a request failed: {error}") from error


def _told(
    timeline: Path, options: Sequence[Option], start_s: float, end_s: float, latency: Floats, seconds: Floats
) -> tuple[Served, tuple[ReplayDecision, ...]]:
    """Return what served when until the end, and why, from the lines that a server wrote."""
    lines = [json.loads(line) for line in timeline.read_text().splitlines()]
    numbers = {option.name: number for number, option in enumerate(options)}
    segments: list[Segment] = []
    decisions: list[ReplayDecision] = []
    for line in lines:
        second = line["at"] - start_s
        if second > end_s:  # the last answers were late
            break
        if line["event"] == "start":  # the last such server was up in time; the others were stopped
            segments, decisions = [Segment(0.0, 0.0, numbers[line["option"]])], []
        elif line["event"] == "decision":
            decisions.append(ReplayDecision(second=second, option=line["option"], reason=line["reason"]))
        elif line["event"] == "serving" and second <= 0:
            segments = [Segment(0.0, 0.0, numbers[line["option"]])]
        elif line["event"] == "serving":
            segments.append(Segment(second, second - line["load_seconds"], numbers[line["option"]]))
    at = np.searchsorted([segment.start_s for segment in segments], seconds, side="right") - 1
    served = np.array([segment.option for segment in segments])[at]
    return Served(latency, served, tuple(segments)), tuple(decisions)
