"""Repeated benchmarks of the front's artifacts, here and over a long window, compared with those of the search."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from objectives.records import Latency, Outcome, Prepared, Throughput
from objectives.serving.bundle import model_files
from objectives.serving.devices import describe
from search.cli.console import Console
from search.errors import ConfigError, JobError
from search.format import MISSING, count
from search.results import Document, Row
from search.session import Session, jobs_of
from search.workers.meter_jobs import MeterJobs
from search.workers.processes import Worker, call
from spaces.candidate import Candidate
from spaces.serialization import from_plain

FILE = "remeasure.json"

Entry = tuple[Row, Candidate, Outcome]


def remeasure(session: Session, meter: Worker, console: Console) -> Document:
    """Benchmark each point of the front except the baseline, which is the other side of every pair; write and return
    the document.

    The study's trials stay unchanged. A row that fails has no `now` and a `reason`, and the others go on.

    Raises:
        ConfigError: nothing was measured yet, the front has no point but the baseline, or the baseline's model file or
        the requests are gone.
    """
    config, home = session.config, session.home
    prepared, entries = _front(session)
    jobs = jobs_of(config, home, prepared, session.study)
    rows = []
    for place, (row, candidate, outcome) in enumerate(entries, 1):
        console.say(f"trial {row['trial']} ({place} of {len(entries)}): timing over a long window")
        found = _timed_again(session, jobs, row, candidate, outcome, meter, console)
        console.say(f"trial {row['trial']}: {_told(found)}")
        rows.append(found)
    document = {
        "study": config.name,
        "machine_then": session.study.facts.get("machine"),
        "machine_now": describe(),
        "rows": rows,
    }
    path = home.reports(config.name) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    return document


def all_failed(document: Document) -> bool:
    return all(row["now"] is None for row in document["rows"])


def prepared_of(session: Session, document: Document) -> Prepared:
    """Return the facts of the baseline that every measurement after the search is compared with.

    Raises:
        ConfigError: nothing was measured yet, or the baseline's model file or the requests are gone.
    """
    name, facts = session.config.name, session.study.facts
    if "prepared" not in facts or document["baseline"] is None:
        raise ConfigError(f"STUDY: {name!r} has no measured baseline yet; leanrec run does that")
    prepared = from_plain(Prepared, facts["prepared"])
    for what, path in (
        ("the baseline's model file", session.home.root / prepared.baseline.path),
        ("the requests", Path(prepared.holdout) / "requests.npz"),
    ):
        if not path.is_file():
            raise ConfigError(f"STUDY: {what} of {name!r} must lie in the cache, but {path} is gone")
    return prepared


def _front(session: Session) -> tuple[Prepared, list[Entry]]:
    """The front's points, fastest first, and what they were built from."""
    found = session.document()
    prepared = prepared_of(session, found)
    entries = {number: (candidate, outcome) for number, candidate, outcome, _ in session.entries()}
    members = sorted((r for r in found["rows"] if r["on_front"]), key=lambda r: float(r["latency_ms"]["p95_ratio"]))
    rows = [(r, *entries[r["trial"]]) for r in members if r["trial"] != 0]
    if not rows:
        raise ConfigError(f"STUDY: the front of {session.config.name!r} has no point but the baseline")
    return prepared, rows


def _timed_again(
    session: Session,
    jobs: MeterJobs,
    row: Row,
    candidate: Candidate,
    outcome: Outcome,
    meter: Worker,
    console: Console,
) -> Row:
    config, artifact = session.config, outcome.artifact
    assert artifact is not None
    again: Row = {"trial": row["trial"], "then": _then(row), "now": None, "agrees": None, "reason": None}
    model = session.home.root / artifact.path
    for file in (model.with_name(name) for name in model_files(candidate.placement, model.parent)):
        if not file.is_file():
            return again | {"reason": f"its model file is gone from the cache: {file}"}
    recording = jobs.recording(f"remeasure-{row['trial']}")
    arguments = jobs.time(artifact, candidate, "confirm", config.seed + 1, recording)
    try:
        timed = call(meter, "benchmark", arguments, jobs.limit_seconds("confirm"), console.say)
    except JobError as error:
        return again | {"reason": str(error)}
    now = _now(from_plain(Latency, timed["latency"]), from_plain(Throughput, timed["throughput"]))
    again |= {"now": now, "agrees": _overlap(again["then"], now, "p95_ratio_interval")}
    return again | {"throughput_agrees": _overlap(again["then"], now, "throughput_ratio_interval")}


def _then(row: Row) -> dict[str, Any]:
    latency = row["latency_ms"]
    return {
        "p95_ms": latency["p95"],
        "p95_ratio": latency["p95_ratio"],
        "p95_ratio_interval": latency["p95_ratio_interval"],
        "throughput_rps": row["throughput_rps"],
        "throughput_ratio": row["throughput_ratio"],
        "throughput_ratio_interval": row["throughput_ratio_interval"],
        "capacity_ratio": row["capacity_ratio"],
        "capacity_ratio_interval": row["capacity_ratio_interval"],
    }


def _now(latency: Latency, throughput: Throughput) -> dict[str, Any]:
    return {
        "p95_ms": latency.candidate.p95_ms,
        "p95_ratio": latency.p95_ratio,
        "p95_ratio_interval": list(latency.p95_ratio_interval),
        "throughput_rps": throughput.rps,
        "throughput_ratio": throughput.ratio,
        "throughput_ratio_interval": list(throughput.ratio_interval),
        "capacity_ratio": throughput.capacity_ratio,
        "capacity_ratio_interval": list(throughput.capacity_ratio_interval),
        "baseline_p95_ms": latency.baseline.p95_ms,
        "rate_rps": latency.rate_rps,
        "requests": latency.requests,
    }


def _overlap(then: Mapping[str, Any], now: Mapping[str, Any], key: str) -> bool:
    (low, high), (least, most) = then[key], now[key]
    return bool(low <= most and least <= high)


def _told(row: Row) -> str:
    if row["now"] is None:
        return f"not timed: {row['reason']}"
    then, now = row["then"], row["now"]
    verdict = "the intervals overlap" if row["agrees"] else "the intervals do not overlap"
    return f"p95 ratio {_ratio(then)} then, {_ratio(now)} now: {verdict}"


def conclusion(document: Document) -> str:
    """Describe the number of the front's points that agree with the search, in one sentence."""
    timed = [row for row in document["rows"] if row["now"] is not None]
    agree = sum(bool(row["agrees"]) for row in timed)
    failed = len(document["rows"]) - len(timed)
    told = f"{agree} of {count(len(timed), 'point')} timed again agree with the p95 ratio of the search"
    return told + (f"; {failed} could not be timed" if failed else "")


def remeasured_table(document: Document) -> Table:
    """Old and new side by side, the fastest first."""
    machines = f"then: {document['machine_then'] or MISSING}\nnow: {document['machine_now']}"
    table = Table(title=f"Front of {document['study']}, timed again", title_justify="left", caption=machines)
    table.caption_justify = "left"
    table.add_column("trial", justify="right")
    for name in ("p95 ms", "p95 ratio [95%]", "throughput ratio [95%]"):
        for when in ("then", "now"):
            table.add_column(f"{name}\n{when}", justify="right", no_wrap=True)
    table.add_column("agrees", justify="left", max_width=40)
    for row in document["rows"]:
        table.add_row(str(row["trial"]), *_cells(row), _agreement(row))
    return table


def _cells(row: Row) -> Sequence[str]:
    then, now = row["then"], row["now"]
    if now is None:
        return f"{then['p95_ms']:.3f}", MISSING, _ratio(then), MISSING, _throughput(then), MISSING
    return (
        f"{then['p95_ms']:.3f}", f"{now['p95_ms']:.3f}", _ratio(then), _ratio(now), _throughput(then), _throughput(now)
    )  # fmt: skip


def _agreement(row: Row) -> str:
    if row["now"] is None:
        return f"not timed: {row['reason']}"
    differing = [name for name, key in (("p95", "agrees"), ("throughput", "throughput_agrees")) if not row[key]]
    return f"no: {' and '.join(differing)}" if differing else "yes"


def _ratio(found: Mapping[str, Any]) -> str:
    low, high = found["p95_ratio_interval"]
    return f"{found['p95_ratio']:.3f} [{low:.3f}, {high:.3f}]"


def _throughput(found: Mapping[str, Any]) -> str:
    low, high = found["throughput_ratio_interval"]
    return f"{found['throughput_ratio']:.2f} [{low:.2f}, {high:.2f}]"
